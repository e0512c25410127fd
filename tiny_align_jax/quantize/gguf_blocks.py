"""GGUF's quantised blocks as codes and scales that `Grouped` computes with; values stay bit for bit.

A file interleaves scales and codes block by block, [scale, 16 bytes of codes, scale, ...]; here codes
lie together and scales lie together, which vector units read. Q4_0, Q4_1, Q8_0 and Q4_K take exactly
the file's bytes; codes of five or six bits get a byte each.

Source: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/quants.py (read, not copied).
"""

import dataclasses
from collections.abc import Callable, Collection

import gguf
import numpy as np

from tiny_align_jax.quantize.layout import Layout
from tiny_align_jax.quantize.pack import pack_nibbles

Kind = gguf.GGMLQuantizationType
_SUPER = 256  # values in a block of a 'K' kind

LAYOUTS: dict[Kind, Layout] = {
    Kind.Q4_0: Layout(4, 32, half=16, zero=8),
    Kind.Q4_1: Layout(4, 32, half=16, has_minimum=True),
    Kind.Q5_0: Layout(8, 32),
    Kind.Q5_1: Layout(8, 32, has_minimum=True),
    Kind.Q8_0: Layout(8, 32),
    Kind.Q4_K: Layout(4, 32, half=32, has_minimum=True, outer_group=_SUPER),
    Kind.Q5_K: Layout(8, 32, has_minimum=True, outer_group=_SUPER),
    Kind.Q6_K: Layout(8, 16, outer_group=_SUPER),
}


def common_layout(kinds: Collection[Kind]) -> Layout | None:
    """The smallest layout that holds matrices of all `kinds` exactly (layers of a scan share one).

    None if there is none: kinds we do not read, or with and without scales of scales.
    """
    found = {LAYOUTS.get(kind) for kind in kinds}
    if None in found or not found:
        return None
    layouts = [layout for layout in found if layout is not None]
    if len(layouts) == 1:
        return layouts[0]
    if len({layout.outer_group for layout in layouts}) > 1:
        return None
    return Layout(
        8,
        min(layout.group for layout in layouts),
        has_minimum=any(layout.has_minimum for layout in layouts),
        outer_group=layouts[0].outer_group,
    )


def unpack(data: np.ndarray, kind: Kind, layout: Layout) -> dict[str, np.ndarray]:
    """Arrays of `Layout.leaves` from rows of blocks, uint8 [out, bytes a row]."""
    blocks = _READERS[kind](data.reshape(len(data), -1, gguf.GGML_QUANT_SIZES[kind][1]))
    own = LAYOUTS[kind]
    codes = blocks.codes.reshape(len(data), -1)
    if layout.bits == 4:
        codes = pack_nibbles(codes, layout.half)
    else:
        codes = codes.view(np.int8) - np.int8(own.zero)
    leaves = {"codes": codes, "scale": _spread(blocks.scale, own, layout)}
    if layout.has_minimum:
        zeros = np.zeros_like(blocks.scale)
        minimum = zeros if blocks.minimum is None else blocks.minimum
        leaves["minimum"] = _spread(minimum, own, layout)
    if blocks.outer_scale is not None:
        leaves["outer_scale"] = blocks.outer_scale
        if layout.has_minimum:
            outer = blocks.outer_minimum
            leaves["outer_minimum"] = np.zeros_like(blocks.outer_scale) if outer is None else outer
    return leaves


def _spread(scale: np.ndarray, own: Layout, layout: Layout) -> np.ndarray:
    """Scales of this kind's groups, repeated where the common layout has finer ones: [out, groups]."""
    return np.repeat(scale.reshape(len(scale), -1), own.group // layout.group, axis=1)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A matrix's blocks taken apart: codes in the order of the inputs, one a byte."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None
    outer_scale: np.ndarray | None = None
    outer_minimum: np.ndarray | None = None


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at byte `start` of every block [out, blocks, bytes]."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0]


def _nibbles(packed: np.ndarray, half: int) -> np.ndarray:
    """Codes 0..15 in the order of the inputs; the reverse of `pack_nibbles`."""
    runs = packed.reshape(*packed.shape[:-1], -1, 1, half)
    both = np.concatenate([runs & 15, runs >> 4], axis=-2)
    return both.reshape(*packed.shape[:-1], -1)


def _fifth_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    """16 times the fifth bits of the 32 codes of a Q5_0 or Q5_1 block."""
    bits = np.unpackbits(blocks[..., start : start + 4], axis=-1, bitorder="little")
    return bits << 4


def _read_q4_0(blocks: np.ndarray) -> _Blocks:
    return _Blocks(_nibbles(blocks[..., 2:], 16), _half(blocks, 0))


def _read_q4_1(blocks: np.ndarray) -> _Blocks:
    return _Blocks(_nibbles(blocks[..., 4:], 16), _half(blocks, 0), _half(blocks, 2))


def _read_q5_0(blocks: np.ndarray) -> _Blocks:
    codes = _nibbles(blocks[..., 6:], 16) | _fifth_bits(blocks, 2)
    return _Blocks(codes.astype(np.int8) - np.int8(16), _half(blocks, 0))


def _read_q5_1(blocks: np.ndarray) -> _Blocks:
    codes = _nibbles(blocks[..., 8:], 16) | _fifth_bits(blocks, 4)
    return _Blocks(codes.astype(np.int8), _half(blocks, 0), _half(blocks, 2))


def _read_q8_0(blocks: np.ndarray) -> _Blocks:
    return _Blocks(np.ascontiguousarray(blocks[..., 2:]).view(np.int8), _half(blocks, 0))


def _six_bit_pairs(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima, 0..63, of the 8 groups of a Q4_K or Q5_K block: [out, blocks, 8] each.

    Four groups have theirs in the low six bits of bytes 0-3 and 4-7; the other four in the nibbles of
    bytes 8-11, with the two bits left over in bytes 0-7 on top.
    """
    first, second, mixed = (blocks[..., start : start + 4] for start in (4, 8, 12))
    scale = np.concatenate([first & 63, (mixed & 15) | (first >> 6) << 4], axis=-1)
    minimum = np.concatenate([second & 63, (mixed >> 4) | (second >> 6) << 4], axis=-1)
    return scale.astype(np.int8), minimum.astype(np.int8)


def _read_q4_k(blocks: np.ndarray) -> _Blocks:
    scale, minimum = _six_bit_pairs(blocks)
    codes = _nibbles(blocks[..., 16:], 32)
    return _Blocks(codes, scale, minimum, _half(blocks, 0), -_half(blocks, 2))


def _read_q5_k(blocks: np.ndarray) -> _Blocks:
    scale, minimum = _six_bit_pairs(blocks)
    # Bit k of byte j is the fifth bit of value j in group k.
    groups = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[..., None, 16:48] >> groups & 1) << 4
    codes = _nibbles(blocks[..., 48:], 32) | fifth.reshape(*blocks.shape[:-1], -1)
    return _Blocks(codes.astype(np.int8), scale, minimum, _half(blocks, 0), -_half(blocks, 2))


def _read_q6_k(blocks: np.ndarray) -> _Blocks:
    # Each half of the block: low bits of values 0-63 and 64-127 in the nibbles of 64 bytes, the upper
    # two bits of values j, 32+j, 64+j, 96+j in byte j of 32 others.
    low = _nibbles(blocks[..., :128], 64)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32) >> shifts & 3
    codes = (low | (high << 4).reshape(low.shape)).astype(np.int8) - np.int8(32)
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return _Blocks(codes, scale, None, _half(blocks, 208))


_READERS: dict[Kind, Callable[[np.ndarray], _Blocks]] = {
    Kind.Q4_0: _read_q4_0,
    Kind.Q4_1: _read_q4_1,
    Kind.Q5_0: _read_q5_0,
    Kind.Q5_1: _read_q5_1,
    Kind.Q8_0: _read_q8_0,
    Kind.Q4_K: _read_q4_k,
    Kind.Q5_K: _read_q5_k,
    Kind.Q6_K: _read_q6_k,
}
