"""Writes canonical model folders: whatever the source, Hugging Face's layout and tensor names."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights import ctranslate2, gguf_config, gguf_tokenizer, safetensors
from tiny_align_jax.weights.gguf import GGUFSource
from tiny_align_jax.weights.source import TensorSource

ASSET_FILE = "asset.json"
_BLOCK_BYTES = 32_000_000  # of float32; bounds the memory of a conversion
_HASH_CHUNK_BYTES = 4_000_000


def from_ctranslate2(model_bin: Path, out: Path) -> None:
    """A Whisper `model.bin` and the tokenizer.json beside it -> canonical folder `out`.

    Raises:
        AssetError: a file is missing, or the disk is full.
        WeightsError: not a Whisper model, or corrupt.
    """
    tokenizer_file = model_bin.with_name("tokenizer.json")
    if not tokenizer_file.is_file():
        raise AssetError(f"{model_bin.parent} has no tokenizer.json, which {model_bin.name} needs")
    tokenizer_text = tokenizer_file.read_text(encoding="utf-8")
    source = ctranslate2.CTranslate2Source(model_bin)
    config = source.config(json.loads(tokenizer_text))
    end = config["eos_token_id"]
    generation = ctranslate2.generation_config(ctranslate2.read_ct2_config(model_bin.parent))
    write_weights(source, out)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", generation)
    (out / "tokenizer.json").write_text(tokenizer_text, encoding="utf-8")
    write_json(
        out / "tokenizer_config.json", _whisper_tokenizer_config(json.loads(tokenizer_text), end)
    )


def from_gguf(path: Path, out: Path) -> None:
    """A GGUF file -> canonical folder `out`, with float16 for what was quantised.

    Raises:
        AssetError: the file is missing, or the disk is full.
        WeightsError: an architecture or tokenizer that we do not read, or corrupt.
    """
    source = GGUFSource(path)
    config = gguf_config.config_json(source)
    tokenizer = gguf_tokenizer.build_tokenizer(source.metadata)
    write_weights(source, out)
    write_json(out / "config.json", config)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", gguf_tokenizer.tokenizer_config(source.metadata))


def write_weights(source: TensorSource, out: Path) -> None:
    """Streams `source` into `out/model.safetensors`.

    Matrices in float32 (dequantised blocks among them) are stored in float16, which halves the
    folder; vectors (norms, biases) and tensors already in 16 bits are stored as they are.
    """
    tensors = {name: _tensor(source, name) for name in source.names()}
    safetensors.write(out / safetensors.WEIGHTS_FILE, tensors, {"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_asset_json(
    folder: Path, name: str, source: str, licence: str, weights: list[str]
) -> dict:
    """Records where the folder came from and what is in it.

    Args:
        folder: complete but for asset.json.
        name: asset name.
        source: where it came from, in words.
        licence: of the weights.
        weights: names of the files that the fingerprint covers.

    Returns:
        What was written.
    """
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ASSET_FILE
    }
    record = {
        "name": name,
        "source": source,
        "licence": licence,
        "fingerprint": fingerprint_of({n: files[n]["sha256"] for n in weights}),
        "weights": sorted(weights),
        "files": files,
    }
    write_json(folder / ASSET_FILE, record)
    return record


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """One SHA-256 for the weight files: the file's own if there is one, else over all of them."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _tensor(source: TensorSource, name: str) -> safetensors.Tensor:
    shape, dtype = source.shape(name), source.dtype(name)
    if dtype == np.float32 and len(shape) > 1:
        dtype = np.dtype(np.float16)
    return safetensors.Tensor(dtype, shape, lambda: _blocks(source, name, dtype))


def _blocks(source: TensorSource, name: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    for block in _row_blocks(source, name):
        with np.errstate(over="ignore"):  # reported below, by name
            cast = block.astype(dtype)
        if not np.isfinite(cast.astype(np.float32)).all():
            raise WeightsError(f"{name} holds values that are not finite in {dtype}")
        yield cast


def _row_blocks(source: TensorSource, name: str) -> Iterator[np.ndarray]:
    shape = source.shape(name)
    if len(shape) != 2:
        yield source.read(name)
        return
    step = max(1, _BLOCK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], step):
        yield source.rows(name, np.arange(start, min(start + step, shape[0])))


def _whisper_tokenizer_config(tokenizer: Mapping[str, Any], end_id: int) -> dict[str, Any]:
    end = next(t["content"] for t in tokenizer["added_tokens"] if t["id"] == end_id)
    return {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "clean_up_tokenization_spaces": False,
    }
