"""Writes canonical model folders: whatever the source, Hugging Face's layout and tensor names."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights import ctranslate2, gguf_config, gguf_tokenizer, safetensors
from tiny_align_jax.weights.folder import CONFIG_FILE, write_json
from tiny_align_jax.weights.gguf import GGUFSource
from tiny_align_jax.weights.source import TensorSource

_BLOCK_BYTES = 32_000_000  # of float32; bounds the memory of a conversion
_TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def from_ctranslate2(model_bin: Path, out: Path) -> None:
    """A Whisper `model.bin` and the tokenizer.json beside it -> canonical folder `out`.

    Raises:
        AssetError: a file is missing, or the disk is full.
        WeightsError: not a Whisper model, or corrupt.
    """
    tokenizer_file = model_bin.with_name(_TOKENIZER_FILE)
    if not tokenizer_file.is_file():
        raise AssetError(
            f"{model_bin.parent} has no {_TOKENIZER_FILE}, which {model_bin.name} needs"
        )
    text = tokenizer_file.read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    source = ctranslate2.CTranslate2Source(model_bin)
    config = source.config(tokenizer)
    write_weights(source, out)
    write_json(out / CONFIG_FILE, config)
    write_json(out / "generation_config.json", ctranslate2.generation_config(model_bin.parent))
    (out / _TOKENIZER_FILE).write_text(text, encoding="utf-8")
    write_json(out / _TOKENIZER_CONFIG_FILE, _whisper_tokenizer_config(tokenizer, config))


def from_gguf(path: Path, out: Path) -> None:
    """A GGUF file -> canonical folder `out`.

    What was quantised is stored in float16, half of float32's bytes. For SmolLM2 (Q4_1) that moves
    logits of standard deviation 7.4 by at most 0.04 (KL divergence 3e-6, no top choice changed);
    bfloat16 would move them by 0.23.

    Raises:
        AssetError: the file is missing, or the disk is full.
        WeightsError: an architecture or tokenizer that we do not read, or corrupt.
    """
    source = GGUFSource(path)
    config = gguf_config.config_json(source)
    tokenizer = gguf_tokenizer.build_tokenizer(source.metadata)
    write_weights(source, out, half=[name for name in source.names() if source.is_quantised(name)])
    write_json(out / CONFIG_FILE, config)
    tokenizer.save(str(out / _TOKENIZER_FILE))
    write_json(out / _TOKENIZER_CONFIG_FILE, gguf_tokenizer.tokenizer_config(source.metadata))


def write_weights(source: TensorSource, out: Path, half: Collection[str] = ()) -> None:
    """Streams `source` into `out/model.safetensors`, with a progress bar on a terminal.

    Args:
        source: the tensors.
        out: an existing folder.
        half: names to store in float16; the others keep their dtype.

    Raises:
        AssetError: full disk.
        WeightsError: values that are not finite in the stored dtype.
    """
    half = frozenset(half)
    with tqdm(desc="converting", unit="B", unit_scale=True, disable=None) as bar:
        tensors = {}
        for name in source.names():
            dtype = np.dtype(np.float16) if name in half else source.dtype(name)
            tensors[name] = _tensor(source, name, dtype, bar)
        bar.total = sum(safetensors.num_bytes(t.shape, t.dtype) for t in tensors.values())
        # 'pt' is what transformers expects of a file it is to open
        safetensors.write(out / safetensors.WEIGHTS_FILE, tensors, {"format": "pt"})


def _tensor(source: TensorSource, name: str, dtype: np.dtype, bar: tqdm) -> safetensors.Tensor:
    def blocks() -> Iterator[np.ndarray]:
        for block in _row_blocks(source, name):
            with np.errstate(over="ignore"):  # an overflow is reported below, by name
                cast = block.astype(dtype)
            if not np.isfinite(cast.astype(np.float32)).all():
                raise WeightsError(f"{name} holds values that are not finite in {dtype}")
            bar.update(cast.nbytes)
            yield cast

    return safetensors.Tensor(dtype, source.shape(name), blocks)


def _row_blocks(source: TensorSource, name: str) -> Iterator[np.ndarray]:
    shape = source.shape(name)
    if len(shape) != 2:
        yield source.read(name)
        return
    step = max(1, _BLOCK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], step):
        yield source.rows(name, np.arange(start, min(start + step, shape[0])))


def _whisper_tokenizer_config(
    tokenizer: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    end_id = config["eos_token_id"]
    end = next(token["content"] for token in tokenizer["added_tokens"] if token["id"] == end_id)
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "tokenizer_class": "WhisperTokenizer",
        "clean_up_tokenization_spaces": False,
        **dict.fromkeys(roles, end),
    }
