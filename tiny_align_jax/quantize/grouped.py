"""A quantised matrix that computes: codes and scales go into the products, dequantised on the way.

What a product costs decides its form. One decoded token reads every weight once:
    GPU: a sum of products, which XLA fuses with the dequantisation into one kernel that reads codes and
        scales and writes nothing else.
    CPU: a dot of a dequantised block of rows that stays in the processor's cache, block after block.
Many tokens (a prompt, training through the LLM) dequantise one matrix at a time and multiply.
No form ever holds more than one dequantised matrix, or a block of the table.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.quantize.layout import Layout
from tiny_align_jax.types import Array, PyTree

_FEW_ROWS = 2  # tokens up to which the form for single tokens is faster on GPUs
_CPU_BLOCK_BYTES = 512 * 1024  # of float32: half of a core's second-level cache
_GPU_BLOCK_BYTES = 128 * 1024 * 1024  # a layer's matrix whole, the table in blocks


@flax.struct.dataclass
class Grouped:
    """A matrix [out, in]; with a leading axis of layers, which a scan slices off, on every array.

    Attributes:
        codes: int8 [out, in], or two 4-bit codes a byte, uint8 [out, in / 2]; or the same bytes four
            at a time, uint32 (`words`).
        scale: of every group, [out, in / group].
        minimum: added to every group, or None.
        outer_scale, outer_minimum: what `scale` and `minimum` are multiplied by, or None.
        bits, half, zero: see `Layout`.
        dtype: of looked-up rows.
    """

    codes: Array
    scale: Array
    minimum: Array | None = None
    outer_scale: Array | None = None
    outer_minimum: Array | None = None
    bits: int = flax.struct.field(pytree_node=False, default=8)
    half: int = flax.struct.field(pytree_node=False, default=0)
    zero: int = flax.struct.field(pytree_node=False, default=0)
    dtype: str = flax.struct.field(pytree_node=False, default="float32")

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., out, in] of the matrix that it stands for."""
        each = 8 * np.dtype(self.codes.dtype).itemsize // self.bits
        return (*self.codes.shape[:-1], self.codes.shape[-1] * each)

    def matmul(self, x: Array, dtype: Any = None) -> Array:
        """x [..., in] times the transposed matrix, summed in float32; in `dtype` (None: x's)."""
        x = jnp.asarray(x)
        rows = x.reshape(-1, x.shape[-1])
        form = _fused if len(rows) <= _FEW_ROWS else _on_gpu
        y = jax.lax.platform_dependent(self, rows, cuda=form, rocm=form, default=_on_cpu)
        return y.reshape(*x.shape[:-1], -1).astype(x.dtype if dtype is None else dtype)

    def attend(self, x: Array) -> Array:
        """Scores of every row of a table: x [..., D] -> float32[..., V]."""
        return self.matmul(x, jnp.float32)

    def take(self, ids: Array) -> Array:
        """Rows `ids` of a table, dequantised, [..., D]."""
        ids = jnp.asarray(ids)
        flat = ids.reshape(-1)
        rows = jax.tree.map(lambda leaf: jnp.take(leaf, flat, axis=0, mode="clip"), self)
        return rows.dequantise().reshape(*ids.shape, -1).astype(self.dtype)

    def dequantise(self) -> Array:
        """The whole matrix, float32 [out, in]."""
        planes = _planes(self, _byte_codes(self))
        if self.bits == 8:
            return planes[0]
        runs = [plane.reshape(len(plane), -1, 1, self.half) for plane in planes]
        return jnp.concatenate(runs, axis=2).reshape(len(planes[0]), -1)


def from_leaves(leaves: dict[str, Any], layout: Layout, dtype: Any) -> Grouped:
    """The matrix of arrays (or their shapes) named as in `Layout.leaves`."""
    name = np.dtype(dtype).name
    return Grouped(**leaves, bits=layout.bits, half=layout.half, zero=layout.zero, dtype=name)


def _byte_codes(weight: Grouped) -> list[Array]:
    """Codes in the parts that bytes give: all [out, in], or low, then high nibbles [out, in / 2]."""
    codes = jnp.asarray(weight.codes)
    if codes.dtype == jnp.uint32:
        kind = jnp.int8 if weight.bits == 8 else jnp.uint8
        codes = jax.lax.bitcast_convert_type(codes, kind).reshape(len(codes), -1)
    return [codes] if weight.bits == 8 else [codes & 15, codes >> 4]


def _word_codes(weight: Grouped) -> list[Array]:
    """Codes in the parts that words give: byte by byte, low before high nibbles, [out, words]."""
    words = jnp.asarray(weight.codes)
    if weight.bits == 4:
        return [words >> shift & 15 for byte in range(4) for shift in (8 * byte, 8 * byte + 4)]
    # Shifted up and, with its sign, down again.
    return [words.astype(jnp.int32) << (24 - 8 * byte) >> 24 for byte in range(4)]


def _planes(weight: Grouped, parts: list[Array]) -> list[Array]:
    """Float32 values of the codes in `parts`."""
    scale = _product(weight.scale, weight.outer_scale)
    minimum = _product(weight.minimum, weight.outer_minimum)
    group = weight.shape[-1] // scale.shape[-1]
    # A group of one run's length lies in one nibble; longer groups lie in both.
    step = 2 if weight.bits == 4 and group <= weight.half else 1
    planes = []
    for k, codes in enumerate(parts):
        scales, minima = (_every(values, k % step, step) for values in (scale, minimum))
        planes.append(_values(codes, weight.zero, scales, minima))
    return planes


def words(tree: PyTree) -> PyTree:
    """Numpy parameters, or their shapes, with the codes of every `Grouped` as uint32: the same bytes.

    A GPU loads four bytes at a time as fast as one. A CPU does not compute with them as they lie.
    """

    def widen(node: Any) -> Any:
        if not isinstance(node, Grouped) or node.codes.dtype == np.uint32:
            return node
        codes = node.codes
        if isinstance(codes, jax.ShapeDtypeStruct):
            shape = (*codes.shape[:-1], codes.shape[-1] // 4)
            return dataclasses.replace(node, codes=jax.ShapeDtypeStruct(shape, np.uint32))
        return dataclasses.replace(node, codes=np.ascontiguousarray(codes).view("<u4"))

    return jax.tree.map(widen, tree, is_leaf=lambda node: isinstance(node, Grouped))


def _product(inner: Any, outer: Any) -> Any:
    """Float32 scales [out, groups]; None of None."""
    if inner is None:
        return None
    inner = jnp.asarray(inner).astype(jnp.float32)
    if outer is None:
        return inner
    outer = jnp.asarray(outer).astype(jnp.float32)
    spread = inner.reshape(*outer.shape, -1) * outer[..., None]
    return spread.reshape(inner.shape)


def _every(scales: Any, offset: int, step: int) -> Any:
    """Scales of one nibble's groups; None of None."""
    if scales is None or step == 1:
        return scales
    return scales.reshape(len(scales), -1, step)[:, :, offset]


def _values(codes: Array, zero: int, scale: Array, minimum: Any) -> Array:
    if codes.dtype == jnp.uint32:
        codes = codes.astype(jnp.int32)  # below 16; the signed conversion is one instruction
    grouped = codes.reshape(*scale.shape, -1).astype(jnp.float32)
    if zero:
        grouped -= zero
    grouped *= scale[..., None]
    if minimum is not None:
        grouped += minimum[..., None]
    return grouped.reshape(codes.shape)


def _byte_inputs(weight: Grouped, x: Array) -> list[Array]:
    """x [R, in] in parts that go with `_byte_codes`."""
    if weight.bits == 8:
        return [x]
    runs = x.reshape(len(x), -1, 2, weight.half)
    return [runs[:, :, k].reshape(len(x), -1) for k in range(2)]


def _word_inputs(weight: Grouped, x: Array) -> list[Array]:
    """x [R, in] in parts that go with `_word_codes`."""
    parts = [part.reshape(len(x), -1, 4) for part in _byte_inputs(weight, x)]
    return [part[:, :, byte] for byte in range(4) for part in parts]


def _fused(weight: Grouped, x: Array) -> Array:
    """[R, out] float32 as one sum of products a row."""
    has_words = weight.codes.dtype == jnp.uint32
    planes = _planes(weight, (_word_codes if has_words else _byte_codes)(weight))
    inputs = (_word_inputs if has_words else _byte_inputs)(weight, x.astype(jnp.float32))
    rows = []
    for r in range(len(x)):
        products = [part[r] * plane for part, plane in zip(inputs, planes, strict=True)]
        rows.append(jnp.sum(functools.reduce(jnp.add, products), axis=-1))
    return jnp.stack(rows)


def _dot(weight: Grouped, x: Array) -> Array:
    """[R, out] float32 by dequantising to x's dtype."""
    planes = _planes(weight, _byte_codes(weight))
    contract = (((1,), (1,)), ((), ()))
    products = [
        jax.lax.dot_general(
            part, plane.astype(x.dtype), contract, preferred_element_type=jnp.float32
        )
        for part, plane in zip(_byte_inputs(weight, x), planes, strict=True)
    ]
    return functools.reduce(jnp.add, products)


def _blocked(weight: Grouped, x: Array, block_bytes: int) -> Array:
    """`_dot` over blocks of rows of about `block_bytes` when dequantised."""
    # Recomputed in a backward pass: what it would keep is the dequantised matrix of every layer.
    dot = jax.checkpoint(_dot)
    num_rows = weight.codes.shape[0]
    size = _block_rows(num_rows, block_bytes // (4 * x.shape[-1]))
    if size == num_rows:
        return dot(weight, x)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), weight)
    y_KRO = jax.lax.map(lambda block: dot(block, x), blocks)
    return jnp.swapaxes(y_KRO, 0, 1).reshape(len(x), num_rows)


_on_cpu = functools.partial(_blocked, block_bytes=_CPU_BLOCK_BYTES)
_on_gpu = functools.partial(_blocked, block_bytes=_GPU_BLOCK_BYTES)


def _block_rows(num_rows: int, limit: int) -> int:
    """Largest divisor of `num_rows` up to `limit`; all rows if only small ones divide it."""
    if num_rows <= limit:
        return num_rows
    pairs = ((d, num_rows // d) for d in range(1, math.isqrt(num_rows) + 1) if num_rows % d == 0)
    best = max((d for pair in pairs for d in pair if d <= limit), default=1)
    return best if 8 * best >= limit else num_rows
