"""The safetensors format: header parsing and streaming writes.

8 bytes of header length (little-endian), a JSON header, then the tensors' bytes.

Source: https://github.com/huggingface/safetensors (format description).
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights._atomic import atomic_file

_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """Where one tensor lies."""

    path: Path
    start: int  # byte offset in the file
    dtype: np.dtype
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and string metadata of one file.

    Raises:
        WeightsError: truncated or corrupt.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise WeightsError(
                f"{path} ({size} bytes) is truncated or no safetensors file; fetch it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry_of(path, 8 + length, info) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} has a header we cannot read ({error!r}); fetch it again"
        ) from error
    short = [n for n, e in entries.items() if e.start + num_bytes(e.shape, e.dtype) > size]
    if short:
        raise WeightsError(
            f"{path} is truncated: {len(short)} of {len(entries)} tensors end after its "
            f"{size} bytes (first: {short[0]}); fetch it again"
        )
    return entries, metadata


def _entry_of(path: Path, base: int, info: Mapping[str, Any]) -> Entry:
    start, end = info["data_offsets"]
    if info["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {info['dtype']} is not read; read are {', '.join(_DTYPES)}")
    entry = Entry(path, base + start, _DTYPES[info["dtype"]], tuple(info["shape"]))
    if start < 0 or end - start != num_bytes(entry.shape, entry.dtype):
        raise ValueError(f"{end - start} bytes for shape {entry.shape} {entry.dtype}")
    return entry


def num_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array of that shape and dtype."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


class Tensor(NamedTuple):
    """One tensor to write: `blocks()` yields it in pieces along the first axis."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]


def write(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes `tensors` block by block, so memory stays at one block; atomic.

    The order is fixed and the header holds no time stamp: equal tensors give equal files.

    Raises:
        AssetError: full disk or unwritable folder; `path` is as it was.
        WeightsError: metadata that is not text, or a dtype that the format lacks.
    """
    header = _header(tensors, metadata)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in _order(tensors):
            written = sum(file.write(b) for b in _byte_blocks(tensors[name]))
            expected = num_bytes(tensors[name].shape, tensors[name].dtype)
            if written != expected:
                raise WeightsError(f"{name}: {written} bytes given, its shape needs {expected}")


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Widest dtype first, so that every tensor starts at a multiple of its item size."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _byte_blocks(tensor: Tensor) -> Iterator[bytes | memoryview]:
    for block in tensor.blocks():
        # ml_dtypes arrays refuse the buffer protocol, their bytes do not
        yield np.ascontiguousarray(block, tensor.dtype).reshape(-1).view(np.uint8).data


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    wrong = [k for k, v in metadata.items() if not (isinstance(k, str) and isinstance(v, str))]
    if wrong:
        raise WeightsError(f"safetensors metadata maps text to text; not so: {wrong}")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in _order(tensors):
        dtype, shape, _ = tensors[name]
        if dtype not in _CODES:
            raise WeightsError(
                f"{name}: safetensors has no dtype {dtype}; it has {sorted(_DTYPES)}"
            )
        end = offset + num_bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # tensors start aligned to 8 bytes
