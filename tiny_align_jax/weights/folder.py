"""Canonical model folders on disk: opened, recorded in asset.json, fingerprinted, verified."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_align_jax.types import AssetError
from tiny_align_jax.weights.safetensors import SafetensorsSource, weight_files

ASSET_FILE = "asset.json"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
_VOICE_CONFIG = ".onnx.json"  # what Piper calls a voice's config
# Raised when conversion changes its output: folders that an older version converted are made anew.
CONVERTER_VERSION = 1
_HASH_CHUNK_BYTES = 4_000_000


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model folder that has been found and checked.

    Attributes:
        path: the folder.
        name: asset name, hub id or folder name.
        config: parsed config.json (of a voice: its .onnx.json).
        fingerprint: SHA-256 over the weights; goes into checkpoints and cache keys.
        origin: where the weights came from, in words.
        licence: of the weights, 'unknown' for a plain local folder.
    """

    path: Path
    name: str
    config: dict[str, Any]
    fingerprint: str
    origin: str
    licence: str

    def source(self) -> SafetensorsSource:
        """The weights, memory-mapped.

        Raises:
            AssetError: no safetensors in the folder (a voice has none).
            WeightsError: corrupt.
        """
        return SafetensorsSource(self.path)

    def preprocessor(self) -> dict[str, Any] | None:
        """Parsed preprocessor_config.json (what an encoder's input looks like), None without one."""
        path = self.path / PREPROCESSOR_FILE
        return read_json(path) if path.is_file() else None


def open_folder(path: str | os.PathLike) -> ModelFolder:
    """A model folder that is already on disk.

    Raises:
        AssetError: no model there, or files that are missing or of another size than recorded.
    """
    path = Path(path)
    record = read_record(path)
    if record is None:
        files = weight_files(path)
        config = read_json(path / CONFIG_FILE)
        return ModelFolder(path, path.name, config, _fingerprint(files), str(path), "unknown")
    if damage := damage_of(path, record):
        raise AssetError(f"{path} is damaged: {damage}. Delete the folder and fetch it again")
    config_file = next((f for f in record["files"] if f.endswith(_VOICE_CONFIG)), CONFIG_FILE)
    config = read_json(path / config_file)
    origin, licence = record["source"], record["licence"]
    return ModelFolder(path, record["name"], config, record["fingerprint"], origin, licence)


def is_model_folder(path: Path) -> bool:
    """Whether `path` looks like a folder of a model (rather than any folder of that name)."""
    return (path / CONFIG_FILE).is_file() or any(path.glob("*" + _VOICE_CONFIG))


def write_record(
    folder: Path, *, name: str, source: str, licence: str, weights: Sequence[str]
) -> None:
    """Writes asset.json: where the complete `folder` came from and the SHA-256 of every file.

    Args:
        folder: complete but for asset.json.
        name: asset name.
        source: where it came from, in words.
        licence: of the weights.
        weights: names of the files that the fingerprint covers.
    """
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    record = {
        "name": name,
        "source": source,
        "licence": licence,
        "fingerprint": _fingerprint_of({n: files[n]["sha256"] for n in weights}),
        "converter": CONVERTER_VERSION,
        "files": files,
    }
    write_json(folder / ASSET_FILE, record)


def read_record(folder: Path) -> dict[str, Any] | None:
    """asset.json of `folder`, None if it has none.

    Raises:
        AssetError: not the record that `write_record` writes.
    """
    path = folder / ASSET_FILE
    if not path.is_file():
        return None
    record = read_json(path)
    lacking = {"name", "source", "licence", "fingerprint", "files"} - set(record)
    if lacking:
        raise AssetError(
            f"{path} lacks {', '.join(sorted(lacking))}. Delete the folder and fetch again"
        )
    return record


def damage_of(folder: Path, record: Mapping[str, Any]) -> str:
    """What is wrong with the folder's files; '' if all have the recorded sizes."""
    for name, info in record["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != info["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, recorded were {info['bytes']}"
    return ""


def verify(folder: ModelFolder) -> None:
    """Hashes every file of a fetched folder against its record.

    Raises:
        AssetError: a file differs.
    """
    record = read_record(folder.path) or {"files": {}}
    wrong = [n for n, info in record["files"].items() if sha256(folder.path / n) != info["sha256"]]
    if wrong:
        raise AssetError(
            f"{folder.path}: changed since they were fetched: {', '.join(wrong)}. "
            "Delete the folder and fetch it again"
        )


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """An object from a model folder's file.

    Raises:
        AssetError: missing, or no JSON object.
    """
    if not path.is_file():
        raise AssetError(f"{path.parent} has no {path.name}; expected a Hugging Face model folder")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AssetError(f"{path} is no valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise AssetError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def _fingerprint(files: Sequence[Path]) -> str:
    stats = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _fingerprint_of_unchanged(stats)


@functools.lru_cache(maxsize=64)
def _fingerprint_of_unchanged(stats: tuple[tuple[str, int, int], ...]) -> str:
    """Hashing gigabytes takes seconds, and one process opens the same folder several times."""
    return _fingerprint_of({Path(file).name: sha256(file) for file, _, _ in stats})


def _fingerprint_of(digests: Mapping[str, str]) -> str:
    """One SHA-256 for the weight files: the file's own if there is one, else over all of them."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
