"""GGUF checkpoints, presented as Hugging Face tensors and config.

llama.cpp's converter changes three things that are undone here: names, the row order of
`attn_q`/`attn_k` of the llama architecture (its rotary embedding pairs neighbours, Hugging Face's
pairs halves) and Gemma's norm weights (it stores 1 + w).

Source: https://github.com/ggml-org/llama.cpp, gguf-py and convert_hf_to_gguf.py (read, not copied).
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import ml_dtypes
import numpy as np

from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights._gguf_file import StoredTensor, read_table
from tiny_align_jax.weights.source import select_rows

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LLAMA_NORMS = {"ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# What differs between architectures: norms around the feed-forward block, and norms of q and k.
_NORMS = {
    "llama": _LLAMA_NORMS,
    "qwen2": _LLAMA_NORMS,
    "qwen3": _LLAMA_NORMS | _HEAD_NORMS,
    "gemma3": _GEMMA_NORMS | _HEAD_NORMS,
}
ARCHITECTURES = tuple(_NORMS)
_ROPE_FACTORS = (
    "rope_freqs.weight"  # Llama 3's rotary scaling as numbers; config.json has it in words
)
_FLOATS = {
    gguf.GGMLQuantizationType.F64: np.dtype(np.float64),
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    gguf.GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}


class RawTensor(NamedTuple):
    """A tensor as stored: rows of quantised blocks.

    Attributes:
        data: uint8 [out, bytes a row], rows in Hugging Face's order.
        kind: how `gguf.quants.dequantize` reads a row.
        shape: of the dequantised matrix, [out, in].
    """

    data: np.ndarray
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]


class GGUFSource:
    """TensorSource over one GGUF file of one of `ARCHITECTURES`.

    Attributes:
        path: the file.
        metadata: every key of the file, as Python values.
        architecture: llama.cpp's name of it, one of `ARCHITECTURES`.
    """

    def __init__(self, path: str | os.PathLike):
        """Reads metadata and the table of tensors, not their data.

        Raises:
            AssetError: no such file.
            WeightsError: not GGUF, truncated, an architecture or tensor we do not know.
        """
        self.path = Path(path)
        self.metadata, self._stored = read_table(self.path)
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in _NORMS:
            raise WeightsError(
                f"{path}: architecture {self.architecture!r}; known: {', '.join(ARCHITECTURES)}"
            )
        if self.metadata.get("split.count", 1) > 1:
            raise WeightsError(
                f"{path} is one of several parts; merge them first with llama-gguf-split --merge"
            )
        self._names = _hf_names(self.path, self.architecture, self._stored)

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._names))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype that `read` returns: the stored one, float32 for quantised blocks."""
        return _FLOATS.get(self._tensor(name).kind, np.dtype(np.float32))

    def kind(self, name: str) -> gguf.GGMLQuantizationType:
        """How the tensor is stored."""
        return self._tensor(name).kind

    def is_quantised(self, name: str) -> bool:
        """Whether the tensor is stored in quantised blocks."""
        return self.kind(name) not in _FLOATS

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised, in Hugging Face's row order."""
        shape = self.shape(name)
        if len(shape) == 1:
            values = self._dequantise(name, self._bytes(name)).reshape(shape)
            order = self._row_order(name)
            values = values if order is None else values[order]
            return values - 1 if self._is_shifted_norm(name) else values
        return self._dequantise(name, self.raw(name).data).reshape(shape)

    def rows(self, name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows `ids` of a matrix, dequantised, [len(ids), width].

        Raises:
            WeightsError: an id outside the matrix, or not a matrix.
        """
        return select_rows(name, self.shape(name), ids, lambda ids: self._rows(name, ids))

    def raw(self, name: str, ids: np.ndarray | None = None) -> RawTensor:
        """Rows `ids` (None: all) of a matrix as stored, for a reader that keeps it quantised."""
        _, _, kind, shape = self._tensor(name)
        data, order = self._bytes(name), self._row_order(name)
        if ids is None:
            return RawTensor(data if order is None else data[order], kind, shape)
        return RawTensor(data[ids if order is None else order[ids]], kind, (len(ids), *shape[1:]))

    def get(self, key: str, default: Any = None) -> Any:
        """Metadata of this architecture, e.g. `get('attention.head_count')`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """As `get`, for a key that cannot be done without.

        Raises:
            WeightsError: the file does not have it.
        """
        value = self.get(key)
        if value is None:
            raise WeightsError(f"{self.path} has no metadata {self.architecture}.{key}")
        return value

    def rope_factors(self) -> np.ndarray | None:
        """Llama 3's rotary frequency divisors, [head width / 2], if the file has them."""
        if _ROPE_FACTORS not in self._stored:
            return None
        offset, _, _, shape = self._stored[_ROPE_FACTORS]
        return np.fromfile(self.path, np.float32, count=shape[0], offset=offset)

    def _rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        stored = self.raw(name, ids)
        return self._dequantise(name, stored.data).reshape(stored.shape)

    def _bytes(self, name: str) -> np.ndarray:
        """Memory map of the stored bytes, uint8 [rows, bytes a row], in the file's row order."""
        offset, num_bytes, _, shape = self._tensor(name)
        num_rows = int(np.prod(shape[:-1], dtype=np.int64))
        row_bytes = num_bytes // num_rows
        return np.memmap(self.path, np.uint8, "r", offset=offset, shape=(num_rows, row_bytes))

    def _dequantise(self, name: str, stored: np.ndarray) -> np.ndarray:
        kind = self._tensor(name).kind
        if kind in _FLOATS:
            return np.ascontiguousarray(stored).view(_FLOATS[kind])
        try:
            return gguf.quants.dequantize(stored, kind)
        except NotImplementedError as error:
            raise WeightsError(
                f"{self.path}: {name} is {kind.name}, which `gguf` cannot read"
            ) from error

    def _row_order(self, name: str) -> np.ndarray | None:
        """Stored row of each Hugging Face row, if they differ."""
        match = re.search(r"self_attn\.([qk])_proj\.", name)
        if self.architecture != "llama" or not match:
            return None
        heads = int(self.require("attention.head_count"))
        if match[1] == "k":
            heads = int(self.get("attention.head_count_kv", heads))
        num_rows = self.shape(name)[0]
        order = np.arange(num_rows).reshape(heads, num_rows // heads // 2, 2)
        return order.swapaxes(1, 2).reshape(num_rows)

    def _is_shifted_norm(self, name: str) -> bool:
        return self.architecture == "gemma3" and name.endswith("norm.weight")

    def _tensor(self, name: str) -> StoredTensor:
        if name not in self._names:
            raise WeightsError(
                f"no tensor {name!r} in {self.path}; it has {len(self._names)} others"
            )
        return self._stored[self._names[name]]


def _hf_names(path: Path, architecture: str, stored: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Hugging Face name -> stored name."""
    layer_names = {**_LAYER, **_NORMS[architecture]}
    names, strangers = {}, []
    for name in stored:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        module = match and (_OUTSIDE if match[1] is None else layer_names).get(match[2])
        if match and module:
            prefix = "" if match[1] is None else f"model.layers.{match[1]}."
            names[f"{prefix}{module}.{match[3]}"] = name
        elif name != _ROPE_FACTORS:
            strangers.append(name)
    if strangers:
        raise WeightsError(
            f"{path}: {len(strangers)} tensor(s) unknown to architecture {architecture!r}: "
            f"{', '.join(sorted(strangers)[:10])}"
        )
    return names
