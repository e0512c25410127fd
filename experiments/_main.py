"""What every experiment does before its work: flags, environment, paths and errors, in one place.

The library reads no environment; these are the only variables, and the log shows them:
    TINY_ALIGN_DATA            folder of corpora (default of every dataset's root)
    TINY_ALIGN_CACHE           folder of weights, features and programs (default ~/.cache/tiny_align)
    JAX_COMPILATION_CACHE_DIR  folder of compiled programs alone; XLA_FLAGS: the compiler's options
"""

import contextlib
import dataclasses
import json
import logging as std_logging
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import _device  # before anything that imports JAX
from tiny_align_jax.types import TinyAlignError

PUBLISHED = Path(__file__).resolve().parent.parent / "published"
_NO_TRITON_GEMM = "--xla_gpu_enable_triton_gemm=false"
VOICE = "piper-en-us-joe-medium"  # the asset that speaks where a config names no voice

CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    os.environ.get("TINY_ALIGN_CACHE", str(Path.home() / ".cache" / "tiny_align")),
    "Folder of fetched weights and cached features (default: TINY_ALIGN_CACHE).",
)
flags.disclaim_key_flags()  # what `define_workdir` defines belongs to its caller's --help


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl main; an error that a user can mend ends in one clear line and exit code 2."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags begin with --")
        logging.set_verbosity(logging.INFO)
        _set_up_jax()
        _device.log()
        from tiny_align_jax import heap  # imports JAX: after its settings

        heap.give_back_after_compiling()
        # Orbax and JAX tell their every step at INFO; a reader of a training log wants ours.
        std_logging.getLogger("absl").addFilter(_ours_or_warning)
        std_logging.getLogger("jax").setLevel(std_logging.WARNING)
        # transformers is here for its tokenizers, and would say that it lacks PyTorch for its models.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        try:
            main(argv)
        except TinyAlignError as error:
            logging.flush()
            print(f"\nerror: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=_parse)


def define_config(name: str, default: str | None, what: str) -> Any:
    """A flag for a config file and its keys."""
    with _unknown_keys_named():  # a flag with a default reads the command line as it is defined
        return config_flags.DEFINE_config_file(name, default, what)


def _parse(argv: Sequence[str]) -> list[str]:
    with _unknown_keys_named():
        return app.parse_flags_with_usage(list(argv))


@contextlib.contextmanager
def _unknown_keys_named() -> Iterator[None]:
    """Ends in one line where a config lacks a key of the command line; ml_collections does in a traceback."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        if any(f.name == "get_config" for f in traceback.extract_tb(error.__traceback__)):
            raise  # a mistake in the config file itself: its lines help
        # An AttributeError of a KeyError, or that alone.
        inner = error.args[0] if error.args else error
        said = " ".join(str(inner.args[0] if isinstance(inner, KeyError) else inner).split())
        given = [a for a in sys.argv[1:] if "." in a.partition("=")[0]]
        named = [a for a in given if any(f"'{k}'" in said for k in a.partition("=")[0].split("."))]
        where = " ".join(named or given)
        print(f"\nerror: the config has no such key: {where}: {said}", file=sys.stderr)
        sys.exit(2)


class _WorkdirParser(flags.ArgumentParser):
    """A folder, or the beginning of the name of one in published/."""

    syntactic_help = "a folder, or the beginning of a name in published/, e.g. whisper-tiny.en"

    def parse(self, argument: str) -> str:
        found = [p for p in published_bases() if p.name.startswith(argument)] if argument else []
        if Path(argument).exists() or not found:
            return argument
        if len(found) > 1:
            raise ValueError(f"{argument!r} begins several: {', '.join(p.name for p in found)}")
        return str(found[0])


class _WorkdirsParser(flags.ListParser):
    """Several, separated by commas."""

    def parse(self, argument: Any) -> list[str]:
        return [_WorkdirParser().parse(name) for name in super().parse(argument)]


def published_bases() -> list[Path]:
    """Folders of the base projectors that come with the repository."""
    return sorted(path.parent for path in PUBLISHED.glob("*/projector.json"))


def define_workdir(name: str, what: str, required: bool = False, several: bool = False) -> Any:
    """A flag for workdirs of training runs, which also takes short names of published bases."""
    parser = _WorkdirsParser() if several else _WorkdirParser()
    return flags.DEFINE(parser, name, None, what, required=required)


def out_dir(out: str | None, workdir: str) -> Path:
    """Where results about a workdir go: to `out`, else beside it, but never into published/ unasked."""
    folder = Path(workdir)
    if out or folder.resolve().parent != PUBLISHED:
        return Path(out or folder)
    return Path("workdirs") / folder.name


def _with_cpu(platforms: str) -> str:
    """JAX_PLATFORMS with the host: weights are quantised and runs planned there, which `cuda` alone would hide."""
    return platforms if not platforms or "cpu" in platforms.split(",") else f"{platforms},cpu"


def _set_up_jax() -> None:
    """Keeps compiled programs on disk, and sets compiler options; what the user set stays.

    In the environment, so that processes started from here inherit it; a config file may have imported JAX
    already, which reads its variables only then.
    """
    settings = {
        "jax_compilation_cache_dir": str(Path(CACHE_DIR.value) / "programs"),
        # A run compiles dozens of small programs beside its step: together they cost as much again.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_compilation_cache_max_size": 2 * 10**9,  # bytes; the oldest programs go first
    }
    for option, value in settings.items():
        if os.environ.setdefault(option.upper(), str(value)) == str(value) and "jax" in sys.modules:
            sys.modules["jax"].config.update(option, value)
    named = os.environ.get("JAX_PLATFORMS", "")
    if (platforms := _with_cpu(named)) != named:
        os.environ["JAX_PLATFORMS"] = platforms
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_platforms", platforms)
    has_gpu_plugin = any(module.name.startswith("jax_cuda") for module in pkgutil.iter_modules())
    if has_gpu_plugin and "triton_gemm" not in os.environ.get("XLA_FLAGS", ""):
        # Tuning Triton products took 7 CPU minutes of a run's start (docs/results.md). The other kernels are
        # tuned: without, a convolution's gradient takes a second a step instead of four milliseconds.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_NO_TRITON_GEMM}".strip()
    mend_programs(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    logging.info(
        "compiled programs are kept in %s; XLA_FLAGS=%r",
        os.environ["JAX_COMPILATION_CACHE_DIR"],
        os.environ.get("XLA_FLAGS", ""),
    )


def mend_programs(folder: Path) -> None:
    """Removes compiled programs that a killed process left without their time stamp.

    One such file alone makes every later write to the folder fail with a warning, so that no start is ever
    quick again. The last minute's may be in the making, and what is full gives up its oldest meanwhile.
    """
    for program in folder.glob("*-cache"):
        stamp = program.with_name(program.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(FileNotFoundError):
            if not stamp.exists() and time.time() - program.stat().st_mtime > 60:
                program.unlink()


def _ours_or_warning(record: std_logging.LogRecord) -> bool:
    ours = "tiny_align_jax" in record.pathname or "experiments" in record.pathname
    return ours or record.levelno >= std_logging.WARNING


def resolve_config(config: ConfigDict) -> dict[str, Any]:
    """The config as plain mappings: the device's preset applied, empty folders of corpora filled in."""
    plain = json.loads(config.to_json_best_effort())
    _device.fit(plain, config_flags.get_override_values(flags.FLAGS["config"]))
    fill_folders(plain)
    fill_folders(plain.get("mixture", {}))
    return plain


def fill_folders(plain: Mapping[str, Any]) -> None:
    """A resolved config with the empty folders of its corpora filled in, in place."""
    spoken = plain.get("dataset", {}).get("synthetic")
    if spoken is not None:
        spoken["cache_dir"] = spoken["cache_dir"] or str(Path(CACHE_DIR.value) / "recordings")
        spoken["voice"] = spoken["voice"] or str(Path(CACHE_DIR.value) / VOICE)
    for name, section in plain.get("dataset", {}).items():
        # An empty root of a manifest means the manifest's own folder.
        if name != "jsonl" and isinstance(section, dict) and section.get("root") == "":
            section["root"] = data_root(name)


def data_root(name: str) -> str:
    """Default root of a corpus: its folder under TINY_ALIGN_DATA, or ''."""
    root = os.environ.get("TINY_ALIGN_DATA", "")
    return str(Path(root) / name) if root else ""


def with_local_data(aligner: Any) -> Any:
    """The corpus's root on this machine, if the one of the training run is not here."""
    name = aligner.config["dataset"]["name"]
    section = aligner.config["dataset"].get(name, {})
    here, root = data_root(name), section.get("root")
    # Without a root, a manifest's recordings lie beside it.
    is_here = Path(root).is_dir() if root else bool(section.get("manifest"))
    if not here or root is None or is_here:
        return aligner
    dataset = {**aligner.config["dataset"], name: {**section, "root": here}}
    return dataclasses.replace(aligner, config={**aligner.config, "dataset": dataset})


def users_dir(given: str | None) -> Path:
    """Folder of users' states."""
    return Path(given or Path(CACHE_DIR.value) / "users")


def load_aligner(workdir: str, *, need_llm: bool, stage: str = "generation", **work: Any) -> Any:
    """A trained workdir's aligner, if it fits the device; its corpus's root on this machine.

    Args:
        workdir: folder of a finished run.
        need_llm: load the LLM, too.
        stage: what is to be done with it, of `memory.plan.STAGES`; 'reading' if that needs the LLM
            and it is not asked for.
        **work: sizes for the plan, arguments of `memory.plan.require_workdir_fits`.

    Raises:
        BudgetError: it would not fit; nothing was loaded.
        TinyAlignError: of loading.
    """
    from tiny_align_jax.aligner import Aligner
    from tiny_align_jax.memory import plan

    reads_only = not need_llm and stage in ("generation", "evaluation")
    stages = ["reading" if reads_only else stage]
    plan.require_workdir_fits(workdir, CACHE_DIR.value, stages, _device.section(), **work)
    return with_local_data(Aligner.load(workdir, CACHE_DIR.value, need_llm=need_llm))


def log_to_file(path: Path) -> None:
    """Sends a copy of the log to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = std_logging.FileHandler(path)
    handler.setFormatter(logging.PythonFormatter())
    std_logging.getLogger().addHandler(handler)
