"""Frames of the frozen encoder on disk: memory-mapped, keyed by everything that made them.

    <cache_dir>/<digest of the spec>/cache.json         what made the frames, in words
                                     shard-00000.npy    float16 [rows, dim], utterances end to end
                                     shard-00000.json   its utterances, its size and its SHA-256

A key is a SHA-256 over the encoder's fingerprint, the preprocessing, the window, the layers and the
bytes of the audio. Change any of them and the key changes, so stale frames cannot be read: they are
simply not found. A shard counts once its `.json` exists, which is written last; everything else in the
folder is left over from a killed writer (`writer.py`) and is ignored here.

With several layers their frames lie side by side: `frames[:, k * width : (k + 1) * width]` is layer
`spec.layers[k]`, so a projector that mixes layers reshapes the last axis to [layers, width].
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tiny_align_jax.types import CacheError

FORMAT_VERSION = 1
SPEC_FILE = "cache.json"
STORE_DTYPE = np.dtype(np.float16)


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that decides an utterance's frames, besides its audio.

    Attributes:
        encoder: plug-in name and config, in words.
        fingerprint: SHA-256 of the encoder's weights.
        preprocessing: version of decoding, resampling and the encoder's arithmetic.
        window_samples: length that every utterance is padded to, 16 kHz samples.
        layers: hidden states kept, as indices from 0 (input of the first layer).
        compute_dtype: dtype the encoder ran in.
    """

    encoder: str
    fingerprint: str
    preprocessing: str
    window_samples: int
    layers: tuple[int, ...]
    compute_dtype: str

    def digest(self) -> str:
        """SHA-256 over all fields and the format."""
        content = json.dumps([FORMAT_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def folder(self, cache_dir: str | pathlib.Path) -> pathlib.Path:
        """Where frames made with this spec live under `cache_dir`."""
        return pathlib.Path(cache_dir) / self.digest()[:16]

    def key(
        self,
        audio_sha256: str,
        start_s: float = 0.0,
        end_s: float | None = None,
        distortion: str = "",
    ) -> str:
        """Key of the stretch [start_s, end_s) of the file with that hash, distorted or as it is."""
        end = "end" if end_s is None else f"{end_s:.6f}"
        content = f"{self.digest()} {audio_sha256} {start_s:.6f} {end}"
        if distortion:
            content += f" {distortion}"
        return hashlib.sha256(content.encode()).hexdigest()


class Entry(NamedTuple):
    """Where one utterance's frames are, and how long its audio was before any truncation."""

    shard: str
    offset: int
    num_frames: int
    num_samples: int


class FeatureCache:
    """Read access to the frames of one spec. Use `FeatureCache.open`."""

    def __init__(
        self, folder: pathlib.Path, spec: Spec, dim: int, entries: dict[str, Entry]
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.dim = dim
        self._entries = entries
        self._shards: dict[str, np.ndarray] = {}

    @classmethod
    def open(
        cls, folder: str | pathlib.Path, *, spec: Spec | None = None, checksums: bool = False
    ) -> "FeatureCache":
        """Opens a folder and verifies its shards.

        Args:
            folder: `Spec.folder(cache_dir)`.
            spec: what the frames must have been made with; None accepts what the folder says.
            checksums: also compare every shard's SHA-256 (about 1 s a GB), not only its size.

        Raises:
            CacheError: no cache there, made with another spec, or shards that are damaged (all
                listed).
        """
        folder = pathlib.Path(folder)
        found = read_spec(folder)
        if spec is not None and found != spec:
            raise CacheError(f"{folder}: made with other settings: {_differences(found, spec)}")
        entries: dict[str, Entry] = {}
        faults: list[str] = []
        dim = 0
        for sidecar in sorted(folder.glob("shard-*.json")):
            try:
                shard = read_sidecar(sidecar, found, checksums=checksums)
            except CacheError as error:
                faults.append(str(error))
                continue
            dim = shard["dim"]
            entries |= {key: Entry(shard["file"], *rest) for key, *rest in shard["entries"]}
        if faults:
            listed = "\n  ".join(faults)
            raise CacheError(
                f"{len(faults)} damaged shard(s); extracting features again replaces them:\n  {listed}"
            )
        return cls(folder, found, dim, entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def num_frames(self, key: str) -> int:
        """Valid frames of an utterance.

        Raises:
            CacheError: not in the cache.
        """
        return self._entry(key).num_frames

    def num_samples(self, key: str) -> int:
        """Samples of the utterance's audio at 16 kHz, before any truncation to the window."""
        return self._entry(key).num_samples

    def frames(self, key: str) -> np.ndarray:
        """Frames of an utterance, float16 [T, dim], a read-only view of the mapped shard.

        Raises:
            CacheError: not in the cache.
        """
        entry = self._entry(key)
        shard = self._shards.get(entry.shard)
        if shard is None:
            shard = np.load(self.folder / entry.shard, mmap_mode="r", allow_pickle=False)
            # As a plain array: np.memmap's own slicing costs ten times as much.
            self._shards[entry.shard] = shard = np.asarray(shard)
        return shard[entry.offset : entry.offset + entry.num_frames]

    def _entry(self, key: str) -> Entry:
        try:
            return self._entries[key]
        except KeyError:
            raise CacheError(
                f"{self.folder}: no frames for key {key[:12]}...; run "
                "`python -m experiments.extract_features` with this config first"
            ) from None


def read_spec(folder: pathlib.Path) -> Spec:
    """The spec that a cache folder was made with.

    Raises:
        CacheError: no cache there, or its description is damaged.
    """
    path = folder / SPEC_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Spec(**{**fields, "layers": tuple(fields["layers"])})
    except FileNotFoundError:
        raise CacheError(f"{folder}: no feature cache here ({SPEC_FILE} is missing)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise CacheError(
            f"{path}: damaged ({error}); delete the folder and extract again"
        ) from error


def read_sidecar(path: pathlib.Path, spec: Spec, *, checksums: bool) -> dict[str, Any]:
    """A shard's description, after comparing it with the shard.

    Raises:
        CacheError: unreadable, of another spec, or not what lies on the disk.
    """
    try:
        shard = json.loads(path.read_text(encoding="utf-8"))
        file, size, digest = path.with_name(shard["file"]), shard["bytes"], shard["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path}: damaged ({error})") from error
    if shard["spec"] != spec.digest():
        raise CacheError(f"{path}: belongs to another cache (spec {shard['spec'][:12]})")
    if not file.is_file() or file.stat().st_size != size:
        found = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
        raise CacheError(f"{file}: {found}, expected {size} bytes")
    if checksums and file_sha256(file) != digest:
        raise CacheError(f"{file}: SHA-256 differs from the one written beside it")
    return shard


def file_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(found: Spec, wanted: Spec) -> str:
    return "; ".join(
        f"{field.name} is {getattr(found, field.name)!r}, expected {getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(Spec)
        if getattr(found, field.name) != getattr(wanted, field.name)
    )
