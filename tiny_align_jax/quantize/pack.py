"""Quantisation of matrices by rounding, in numpy: the same row gives the same codes wherever it stands.

Scales are rounded to float16 before codes are computed from them, so that codes make up for it.
"""

import numpy as np

from tiny_align_jax.quantize.layout import Layout
from tiny_align_jax.types import WeightsError

_BLOCK_VALUES = 1 << 20  # quantised at a time: temporaries stay in the processor's cache


def quantise(matrix: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """Arrays of `Layout.leaves` for a matrix [out, in].

    Raises:
        WeightsError: values that are not finite, or too large for float16 scales.
    """
    if layout.outer_group:
        raise ValueError("scales of scales come from files, they are not made here")
    out = {name: np.empty(s, kind) for name, (s, kind) in layout.leaves(matrix.shape).items()}
    rows = max(1, _BLOCK_VALUES // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        block = np.asarray(matrix[start : start + rows], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            for name, values in _quantise_block(block, layout).items():
                out[name][start : start + rows] = values
    if not all(np.isfinite(out[name]).all() for name in out if name != "codes"):
        raise WeightsError("values that are not finite, or beyond float16, cannot be quantised")
    return out


def _quantise_block(block: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    grouped = block.reshape(len(block), -1, layout.group)
    if layout.has_minimum:
        return _with_minimum(grouped, layout)
    if layout.bits == 8:
        scale = _float16(np.abs(grouped).max(-1) / 127)
        codes = np.clip(np.rint(_divide(grouped, scale)), -127, 127).astype(np.int8)
        return {"codes": codes.reshape(block.shape), "scale": scale}
    # One more code below zero than above: the value of largest magnitude gets code 0, value -8.
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[..., None], -1)[..., 0]
    scale = _float16(largest / -layout.zero)
    codes = np.clip(np.rint(_divide(grouped, scale)) + layout.zero, 0, 15).astype(np.uint8)
    packed = pack_nibbles(codes.reshape(block.shape), layout.half)
    return {"codes": packed, "scale": scale}


def _with_minimum(grouped: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    minimum = _float16(grouped.min(-1))
    span = grouped.max(-1) - minimum.astype(np.float32)
    scale = _float16(span / 15)
    above = grouped - minimum.astype(np.float32)[..., None]
    codes = np.clip(np.rint(_divide(above, scale)), 0, 15).astype(np.uint8)
    packed = pack_nibbles(codes.reshape(len(codes), -1), layout.half)
    return {"codes": packed, "scale": scale, "minimum": minimum}


def pack_nibbles(codes: np.ndarray, half: int) -> np.ndarray:
    """Codes 0..15 [..., in] as bytes [..., in / 2], in the order that `Layout.half` describes."""
    runs = codes.reshape(*codes.shape[:-1], -1, 2, half)
    return (runs[..., 0, :] | runs[..., 1, :] << 4).reshape(*codes.shape[:-1], -1)


def _float16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


def _divide(grouped: np.ndarray, scale: np.ndarray) -> np.ndarray:
    divisor = scale.astype(np.float32)
    return grouped / np.where(divisor == 0, np.float32(1), divisor)[..., None]
