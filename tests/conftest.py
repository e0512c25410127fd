"""What every test gets: JAX on the CPU, programs compiled once a run, and where real data lies.

Compilation takes most of the time of tiny models, and many tests compile equal programs: across tests,
across pytest-xdist's workers and in subprocesses. They share JAX's persistent cache in a folder that
lives as long as the run. Set JAX_COMPILATION_CACHE_DIR to keep one between runs.
"""

import os
import pathlib
import shutil
import sys
import tempfile

import pytest

_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Environment, not jax.config: workers and subprocesses inherit it, and JAX reads it when imported.
_JAX_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Compiling takes most of the time here: a third less of it without XLA's costly passes.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
_OWN_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    for name, value in _JAX_SETTINGS.items():
        os.environ.setdefault(name, value)
    # A worker a core: more threads of PyTorch would wait for each other.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if _CACHE_VARIABLE not in os.environ:  # xdist's workers find their controller's
        config.stash[_OWN_CACHE] = tempfile.mkdtemp(prefix="tiny_align_jax_programs_")
        os.environ[_CACHE_VARIABLE] = config.stash[_OWN_CACHE]


def pytest_unconfigure(config: pytest.Config) -> None:
    if own := config.stash.get(_OWN_CACHE, None):
        os.environ.pop(_CACHE_VARIABLE, None)
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _quick_to_compile(request):
    """CTC's recursion rolled up, but in its own tests: compiling eight steps takes 2 s a program, running
    a tiny one nothing."""
    if request.module.__name__.endswith("ctc_test"):
        yield
        return
    from tiny_align_jax import ctc  # imports JAX: after its settings are made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctc, "UNROLL", 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Programs of earlier modules are forgotten: half of this suite in one process comes near the number of
    memory maps that Linux allows, and every garbage collection goes through all that they hold."""
    yield
    if "jax" in sys.modules:
        from tiny_align_jax import heap

        heap.drop_many_programs(many_maps=4000)


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """Folder of real corpora; its tests are marked `data`."""
    value = os.environ.get("TINY_ALIGN_DATA", "")
    if not pathlib.Path(value or "/nowhere").is_dir():
        pytest.skip(f"TINY_ALIGN_DATA={value!r} is no folder of corpora (e.g. with speechocean762)")
    return pathlib.Path(value)


@pytest.fixture(scope="session")
def asset_cache() -> pathlib.Path:
    """Folder of fetched weights; its tests are marked `weights`."""
    value = os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align")
    folder = pathlib.Path(value).expanduser()
    if not folder.is_dir():
        pytest.skip(
            f"no weights in {folder}: run python -m experiments.fetch_assets (TINY_ALIGN_CACHE)"
        )
    return folder
