"""Appends frames to a feature cache so that a kill, a full disk or a second writer loses nothing.

Frames are gathered in memory and written a shard at a time: data to a temporary file, flushed to the
disk, renamed; then the shard's description the same way. A kill loses the shard in memory and no more.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import BinaryIO

import filelock
import numpy as np
from absl import logging

from tiny_align_jax.features import cache
from tiny_align_jax.types import CacheError

# Half a minute's work for a small encoder on a laptop: the most that a kill can lose.
SHARD_BYTES = 32 * 2**20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class CacheWriter:
    """Write access to the cache of one spec, by one process at a time. Use `CacheWriter.open`."""

    def __init__(self, folder: pathlib.Path, spec: cache.Spec, shard_bytes: int) -> None:
        self._folder = folder
        self._spec = spec
        self._shard_bytes = shard_bytes
        self._pending: list[tuple[str, np.ndarray, int]] = []
        self._known = _kept_keys(folder, spec)
        self._pending_bytes = 0
        taken = [int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json")]
        self._next_shard = max(taken, default=-1) + 1

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, cache_dir: str | pathlib.Path, spec: cache.Spec, shard_bytes: int = SHARD_BYTES
    ) -> Iterator["CacheWriter"]:
        """Yields the writer of `spec`; waits for another process that is writing there.

        What was added is on the disk when the block ends, also when it ends in an exception.

        Raises:
            CacheError: disk full or folder not writable.
        """
        folder = spec.folder(cache_dir)
        with _clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            with _clear_errors(folder):
                _sweep(folder, spec)
                write_atomically(folder / cache.SPEC_FILE, json.dumps(dataclasses.asdict(spec)))
            writer = cls(folder, spec, shard_bytes)
            try:
                yield writer
            finally:
                writer.flush()

    @property
    def folder(self) -> pathlib.Path:
        """The folder that `FeatureCache.open` reads."""
        return self._folder

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def num_samples(self, key: str) -> int:
        """Samples of a known utterance's audio."""
        return self._known[key]

    def add(self, key: str, frames_TE: np.ndarray, num_samples: int) -> None:
        """Appends one utterance; a full shard is written at once.

        Args:
            key: `Spec.key` of its audio.
            frames_TE: float16 [T, dim].
            num_samples: length of its audio, 16 kHz samples, before any truncation.

        Raises:
            CacheError: not float16 [T, dim], not finite, or the disk is full.
        """
        if frames_TE.dtype != cache.STORE_DTYPE or frames_TE.ndim != 2 or not len(frames_TE):
            raise CacheError(
                f"frames must be {cache.STORE_DTYPE} [T, dim] with T > 0, got {frames_TE.dtype} "
                f"{frames_TE.shape}"
            )
        if not np.isfinite(frames_TE).all():
            raise CacheError(f"frames of key {key[:12]} hold NaN or infinity")
        if key in self._known:
            return
        self._pending.append((key, frames_TE, num_samples))
        self._known[key] = num_samples
        self._pending_bytes += frames_TE.nbytes
        if self._pending_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is in memory as a shard.

        Raises:
            CacheError: disk full; the shards written before are kept.
        """
        if not self._pending:
            return
        # Emptied first: when the disk is full, leaving the `open` block must not try once more.
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        name = f"shard-{self._next_shard:05d}"
        self._next_shard += 1
        data = self._folder / f"{name}.npy"
        with _clear_errors(self._folder):
            rows = np.concatenate([frames for _, frames, _ in pending])
            with _atomic(data) as file:
                np.lib.format.write_array_header_1_0(
                    file, np.lib.format.header_data_from_array_1_0(rows)
                )
                # Not `np.save`: on a full disk it raises an OSError without a number.
                file.write(rows.view(np.uint8).data)
            description = _describe(data, self._spec, pending)
            write_atomically(self._folder / f"{name}.json", description)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that it appears whole or not at all."""
    with _atomic(path) as file:
        file.write(text.encode())


def _kept_keys(folder: pathlib.Path, spec: cache.Spec) -> dict[str, int]:
    """Samples of every utterance that is already there."""
    kept = cache.FeatureCache.open(folder, spec=spec)
    return {key: kept.num_samples(key) for key in kept}


def _describe(
    data: pathlib.Path, spec: cache.Spec, pending: list[tuple[str, np.ndarray, int]]
) -> str:
    """Content of a shard's `.json`."""
    offsets = np.cumsum([0, *(len(frames) for _, frames, _ in pending)])
    entries = [
        [key, int(offset), len(frames), num_samples]
        for (key, frames, num_samples), offset in zip(pending, offsets[:-1], strict=True)
    ]
    description = {
        "file": data.name,
        "spec": spec.digest(),
        "dim": pending[0][1].shape[1],
        "bytes": data.stat().st_size,
        "sha256": cache.file_sha256(data),
        "entries": entries,
    }
    return json.dumps(description)


def _sweep(folder: pathlib.Path, spec: cache.Spec) -> None:
    """Removes what a killed writer left, and shards that are damaged; their utterances come anew."""
    for sidecar in folder.glob("shard-*.json"):
        try:
            cache.read_sidecar(sidecar, spec, checksums=False)
        except CacheError as error:
            logging.warning("feature cache: dropping a damaged shard: %s", error)
            sidecar.unlink()
    for path in [*folder.glob("shard-*.npy"), *folder.glob(".*.tmp")]:
        if path.suffix == ".tmp" or not path.with_suffix(".json").exists():
            logging.info("feature cache: dropping %s, left by an interrupted run", path.name)
            path.unlink()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock; the system lets it go when the process ends, however it ends."""
    lock = filelock.FileLock(folder / "writer.lock")
    with _clear_errors(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logging.info("feature cache: waiting for another process that writes in %s", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _atomic(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Yields a temporary file; renames it to `path` if the block succeeds, else removes it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            # Without this a power cut can leave the renamed file with no data in it.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _clear_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a CacheError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise CacheError(
                f"{folder}: disk full ({_free_mb(folder)} MB free). Every shard written before is "
                "kept: free some space or move the folder to another disk (features.cache_dir), "
                "then run the same command to go on from there."
            ) from error
        if error.errno in _DENIED:
            raise CacheError(
                f"{folder}: cannot write here ({error.strerror}); set features.cache_dir to a "
                "folder of yours"
            ) from error
        raise


def _free_mb(folder: pathlib.Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.0f}"
    except OSError:
        return "?"
