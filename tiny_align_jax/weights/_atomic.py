"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tiny_align_jax.types import AssetError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it over `path` only when the block succeeds.

    Raises:
        AssetError: no space left, or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with clear_disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """Yields an empty folder beside `final`; moves it there only when the block succeeds.

    Left-overs of killed processes are removed first, so the caller must hold `final`'s lock.

    Raises:
        AssetError: no space left, or the folder cannot be written; nothing is left behind.
    """
    for stale in final.parent.glob(f".{final.name}.staging-*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = final.with_name(f".{final.name}.staging-{uuid.uuid4().hex[:8]}")
    try:
        with clear_disk_errors(final.parent):
            staging.mkdir(parents=True)
            yield staging
            for file in staging.rglob("*"):
                _sync(file)
            _replace_folder(staging, final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder or a denied write into an AssetError with a way out.

    Raises:
        AssetError: as above.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AssetError(
                f"disk full while writing in {folder} ({_free_mb(folder)} MB free); nothing was "
                "kept. Free some space, or use a folder on another disk."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AssetError(
                f"cannot write in {folder}: {error.strerror}. Use another folder."
            ) from error
        raise


def _replace_folder(staging: Path, final: Path) -> None:
    if final.exists():  # a folder cannot be renamed over a non-empty one
        staging_old = final.with_name(f".{final.name}.staging-old-{uuid.uuid4().hex[:8]}")
        os.replace(final, staging_old)
        os.replace(staging, final)
        shutil.rmtree(staging_old, ignore_errors=True)
    else:
        os.replace(staging, final)


def _sync(path: Path) -> None:
    """Data reaches the disk before the rename does; otherwise a power cut leaves an empty file."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _free_mb(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.0f}"
    except OSError:
        return "?"
