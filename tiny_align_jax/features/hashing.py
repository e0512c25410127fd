"""SHA-256 of audio files, remembered by size and time of change so that a corpus is read once."""

import json
import pathlib
import time
from collections.abc import Iterable
from concurrent import futures

from absl import logging

from tiny_align_jax.features import cache, writer
from tiny_align_jax.types import AudioError

# A file changed within this time of being hashed may change again without a new time stamp (git's
# "racy" entries): hash it again next time.
_SETTLED_NS = 2 * 10**9


def hash_files(
    paths: Iterable[str], memo_path: pathlib.Path, num_workers: int
) -> tuple[dict[str, str], dict[str, AudioError]]:
    """SHA-256 of each file, and the reason for each file that cannot be read.

    Args:
        paths: files; repeats are hashed once.
        memo_path: JSON file of earlier hashes, read and updated; may be deleted at any time.
        num_workers: threads.
    """
    memo = _read_memo(memo_path)
    wanted = sorted(set(paths))
    with futures.ThreadPoolExecutor(num_workers) as pool:
        results = dict(zip(wanted, pool.map(lambda p: _hash(p, memo), wanted), strict=True))
    faults = {p: r for p, r in results.items() if isinstance(r, AudioError)}
    found = {p: r for p, r in results.items() if not isinstance(r, AudioError)}
    settled_ns = time.time_ns() - _SETTLED_NS
    fresh = {p: list(r) for p, r in found.items() if r[1] < settled_ns}
    if any(memo.get(path) != row for path, row in fresh.items()):
        _write_memo(memo_path, memo | fresh)
    return {path: row[2] for path, row in found.items()}, faults


def _hash(path: str, memo: dict[str, list]) -> tuple[int, int, str] | AudioError:
    """(bytes, time of change in ns, SHA-256) of a file, from the memo if neither has changed."""
    try:
        stat = pathlib.Path(path).stat()
        known = memo.get(path)
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return stat.st_size, stat.st_mtime_ns, known[2]
        return stat.st_size, stat.st_mtime_ns, cache.file_sha256(pathlib.Path(path))
    except FileNotFoundError:
        return AudioError(
            f"{path}: no such audio file; check the corpus root and the manifest's path"
        )
    except OSError as error:
        return AudioError(f"{path}: cannot read ({error.strerror})")


def _read_memo(path: pathlib.Path) -> dict[str, list]:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(path: pathlib.Path, memo: dict[str, list]) -> None:
    """Writes the memo; only time is lost if that fails, so a full disk is left to the cache to report."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.write_atomically(path, json.dumps(memo))
    except OSError as error:
        logging.warning("cannot remember audio hashes in %s: %s", path, error)
