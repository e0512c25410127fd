"""CTranslate2 Whisper checkpoints (`model.bin`), presented as Hugging Face tensors and config.

Layout of the file (little-endian): u32 version; a string is u16 length (with its trailing NUL)
and bytes; spec name, u32 revision, u32 number of variables; for each: name, u8 rank, rank x u32
dims, u8 dtype, u32 bytes, data; then u32 aliases, each of two strings.

Source: https://github.com/OpenNMT/CTranslate2, src/models/model.cc and
python/ctranslate2/converters/transformers.py (WhisperLoader), read, not copied.
"""

import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights.source import select_rows

_VERSIONS = (4, 5, 6)  # dtype codes were introduced in 4; 6 is what every converter writes today
_DTYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    3: np.dtype(np.int32),
    4: np.dtype(np.float16),
    5: np.dtype(ml_dtypes.bfloat16),
}


class _Variable(NamedTuple):
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


class _Part(NamedTuple):
    """Rows `index` of `count` equal parts of a CTranslate2 variable (q, k, v are stored fused)."""

    variable: str
    index: int = 0
    count: int = 1


class CTranslate2Source:
    """TensorSource over a Whisper `model.bin`; names and shapes are transformers'.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike):
        """Reads the table of variables, not their data.

        Raises:
            AssetError: no such file.
            WeightsError: truncated, another spec than Whisper's, or quantised to integers.
        """
        self.path = Path(path)
        self._variables = _read_variables(self.path)
        self._parts = _hf_parts(self.path, self._variables)

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._parts))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        part = self._part(name)
        rows, *rest = self._variables[part.variable].shape
        return (rows // part.count, *rest)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one tensor, without reading it."""
        return self._variables[self._part(name).variable].dtype

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only memory map."""
        part, shape, dtype = self._part(name), self.shape(name), self.dtype(name)
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        start = self._variables[part.variable].start + part.index * num_bytes
        return np.memmap(self.path, dtype, "r", offset=start, shape=shape)

    def rows(self, name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows `ids` of a matrix, [len(ids), width].

        Raises:
            WeightsError: an id outside the matrix, or not a matrix.
        """
        return select_rows(name, self.shape(name), ids, lambda ids: np.array(self.read(name)[ids]))

    def config(self, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
        """`config.json` in transformers' WhisperConfig layout.

        Args:
            tokenizer: the parsed tokenizer.json, for the ids of the special tokens.

        Raises:
            WeightsError: the tokenizer lacks Whisper's special tokens.
        """
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        try:
            start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
        except KeyError as error:
            raise WeightsError(
                f"tokenizer.json beside {self.path} has no {error}: not Whisper's"
            ) from error
        width, num_mels, _ = self.shape("model.encoder.conv1.weight")
        vocab_size, _ = self.shape("model.decoder.embed_tokens.weight")
        common = {
            "d_model": width,
            "num_mel_bins": num_mels,
            "vocab_size": vocab_size,
            "max_source_positions": self.shape("model.encoder.embed_positions.weight")[0],
            "max_target_positions": self.shape("model.decoder.embed_positions.weight")[0],
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "decoder_start_token_id": start,
        }
        return {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "activation_function": "gelu",
            "is_encoder_decoder": True,
            "scale_embedding": False,
            "torch_dtype": self.dtype("model.encoder.conv1.weight").name,
            **common,
            **self._stack_sizes("encoder"),
            **self._stack_sizes("decoder"),
        }

    def _stack_sizes(self, side: str) -> dict[str, int]:
        layers = {n.split(".")[3] for n in self._parts if n.startswith(f"model.{side}.layers.")}
        ffn, _ = self.shape(f"model.{side}.layers.0.fc1.weight")
        return {
            f"{side}_layers": len(layers),
            f"{side}_attention_heads": self._integer(f"{side}/num_heads"),
            f"{side}_ffn_dim": ffn,
        }

    def _integer(self, variable: str) -> int:
        if variable not in self._variables:
            raise WeightsError(f"{self.path} has no {variable}; fetch it again")
        start, dtype, _ = self._variables[variable]
        return int(np.fromfile(self.path, dtype, count=1, offset=start)[0])

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            raise WeightsError(
                f"no tensor {name!r} in {self.path}; it has {len(self._parts)} others"
            )
        return self._parts[name]


def generation_config(folder: Path) -> dict[str, Any]:
    """transformers' generation_config.json from CTranslate2's config.json ({} if there is none)."""
    path = folder / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = {
        "alignment_heads": "alignment_heads",
        "suppress_ids": "suppress_tokens",
        "suppress_ids_begin": "begin_suppress_tokens",
    }
    return {hf: stored[ct2] for ct2, hf in names.items() if ct2 in stored}


def _read_variables(path: Path) -> dict[str, _Variable]:
    if not path.is_file():
        raise AssetError(f"{path} does not exist; expected a CTranslate2 model.bin")
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            return _parse(path, file, size)
    except (struct.error, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} ({size} bytes) is truncated or corrupt; fetch it again"
        ) from error


def _parse(path: Path, file: BinaryIO, size: int) -> dict[str, _Variable]:
    version = _unpack(file, "<I")
    if version not in _VERSIONS:
        raise WeightsError(f"{path}: CTranslate2 version {version}; known are {_VERSIONS}")
    spec, _revision = _string(file), _unpack(file, "<I")
    if spec != "WhisperSpec":
        raise WeightsError(f"{path} holds a {spec or 'nameless'} model; only WhisperSpec is read")
    variables = {}
    for _ in range(_unpack(file, "<I")):
        name, rank = _string(file), _unpack(file, "<B")
        shape = tuple(_unpack(file, "<I") for _ in range(rank))
        code, num_bytes = _unpack(file, "<B"), _unpack(file, "<I")
        start = file.tell()
        if code not in _DTYPES or int(np.prod(shape)) * _DTYPES[code].itemsize != num_bytes:
            raise WeightsError(
                f"{path}: {name} says {shape}, dtype {code}, {num_bytes} bytes; corrupt"
            )
        if start + num_bytes > size:
            raise WeightsError(
                f"{path} is truncated: {name} ends after its {size} bytes; fetch it again"
            )
        variables[name] = _Variable(start, _DTYPES[code], shape)
        file.seek(num_bytes, os.SEEK_CUR)
    return variables


def _unpack(file: BinaryIO, layout: str) -> int:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _string(file: BinaryIO) -> str:
    length = _unpack(file, "<H")
    data = file.read(length)
    if len(data) < length:
        raise struct.error("string past the end")
    return data.rstrip(b"\0").decode()


# CTranslate2's names in one layer -> transformers' names, with the part of fused projections.
_SELF_ATTENTION = {
    "self_attention/layer_norm": (("self_attn_layer_norm", 0, 1),),
    "self_attention/linear_0": tuple((f"self_attn.{n}_proj", i, 3) for i, n in enumerate("qkv")),
    "self_attention/linear_1": (("self_attn.out_proj", 0, 1),),
    "ffn/layer_norm": (("final_layer_norm", 0, 1),),
    "ffn/linear_0": (("fc1", 0, 1),),
    "ffn/linear_1": (("fc2", 0, 1),),
    "attention/layer_norm": (("encoder_attn_layer_norm", 0, 1),),
    "attention/linear_0": (("encoder_attn.q_proj", 0, 1),),
    "attention/linear_1": tuple((f"encoder_attn.{n}_proj", i, 2) for i, n in enumerate("kv")),
    "attention/linear_2": (("encoder_attn.out_proj", 0, 1),),
}
_OUTSIDE = {
    "encoder/conv1": "model.encoder.conv1",
    "encoder/conv2": "model.encoder.conv2",
    "encoder/layer_norm": "model.encoder.layer_norm",
    "decoder/layer_norm": "model.decoder.layer_norm",
    "decoder/embeddings": "model.decoder.embed_tokens",
    "encoder/position_encodings": "model.encoder.embed_positions",
    "decoder/position_encodings": "model.decoder.embed_positions",
}
_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "weight": "weight",
    "bias": "bias",
    "encodings": "weight",
}


def _hf_parts(path: Path, variables: Mapping[str, _Variable]) -> dict[str, _Part]:
    integers = [n for n, v in variables.items() if v.dtype.kind == "i" and n.endswith("/weight")]
    if integers:
        raise WeightsError(
            f"{path} is quantised to integers ({integers[0]}: {variables[integers[0]].dtype}); "
            "take a float16 or float32 conversion"
        )
    parts: dict[str, _Part] = {}
    strangers = []
    for name, variable in variables.items():
        if variable.dtype.kind == "i" or not variable.shape:
            continue  # switches and sizes, such as encoder/num_heads, decoder/alignment_heads
        found = _hf_names(name)
        parts.update(found)
        if not found:
            strangers.append(name)
    if strangers:
        raise WeightsError(
            f"{path}: {len(strangers)} unknown variable(s): {', '.join(strangers[:10])}"
        )
    # keys have no bias in Whisper; CTranslate2 fills its part of the fused bias with zeros
    return {n: p for n, p in parts.items() if not n.endswith("k_proj.bias")}


def _hf_names(variable: str) -> dict[str, _Part]:
    module, _, leaf = variable.rpartition("/")
    if leaf not in _LEAVES:
        return {}
    if module in _OUTSIDE:
        return {f"{_OUTSIDE[module]}.{_LEAVES[leaf]}": _Part(variable)}
    match = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)", module)
    targets = _SELF_ATTENTION.get(match[3], ()) if match else ()
    return {
        f"model.{match[1]}.layers.{match[2]}.{target}.{_LEAVES[leaf]}": _Part(
            variable, index, count
        )
        for target, index, count in targets
        if match
    }
