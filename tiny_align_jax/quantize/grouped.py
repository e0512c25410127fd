"""A quantised matrix that computes: codes and scales go into the products, dequantised on the way.

What a product costs decides its form. One decoded token reads every weight once:
    GPU: a sum of products, which XLA fuses with the dequantisation into one kernel that reads codes and
        scales and writes nothing else.
    CPU: a dot of a dequantised block of rows that stays in the processor's cache, block after block.
Many tokens (a prompt, training through the LLM) dequantise one matrix at a time and multiply.
No form ever holds more than one dequantised matrix, or a block of the table.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.quantize.layout import Layout
from tiny_align_jax.types import Array

_FEW_ROWS = 2  # tokens up to which the form for single tokens is faster on GPUs
_CPU_BLOCK_BYTES = 512 * 1024  # of float32: half of a core's second-level cache
_GPU_BLOCK_BYTES = 128 * 1024 * 1024  # a layer's matrix whole, the table in blocks


@flax.struct.dataclass
class Grouped:
    """A matrix [out, in]; with a leading axis of layers, which a scan slices off, on every array.

    Attributes:
        codes: int8 [out, in], or two 4-bit codes a byte, uint8 [out, in / 2].
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
        return (*self.codes.shape[:-1], self.codes.shape[-1] * (8 // self.bits))

    def matmul(self, x: Array, dtype: Any = None) -> Array:
        """x [..., in] times the transposed matrix, summed in float32; in `dtype` (None: x's)."""
        x = jnp.asarray(x)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= _FEW_ROWS:
            forms = {"cuda": _fused, "rocm": _fused}
        else:
            forms = dict.fromkeys(("cuda", "rocm"), _on_gpu)
        y = jax.lax.platform_dependent(self, rows, default=_on_cpu, **forms)
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
        planes = [values for values in self._planes()]
        if self.bits == 8:
            return planes[0]
        runs = [plane.reshape(len(plane), -1, 1, self.half) for plane in planes]
        return jnp.concatenate(runs, axis=2).reshape(len(planes[0]), -1)

    def _planes(self) -> Iterator[Array]:
        """The matrix float32 in parts of which each is one run of operations over the codes.

        One part [out, in] for 8 bits; low, then high nibbles [out, in / 2] for 4.
        """
        scale = _product(self.scale, self.outer_scale)
        minimum = None if self.minimum is None else _product(self.minimum, self.outer_minimum)
        num_parts = 8 // self.bits
        group = num_parts * self.codes.shape[-1] // scale.shape[-1]
        # A group of one run's length lies in one nibble; longer groups lie in both.
        step = 1 if self.bits == 8 or group > self.half else 2
        for k in range(num_parts):
            codes = self.codes
            if self.bits == 4:
                codes = jnp.right_shift(codes, 4) if k else jnp.bitwise_and(codes, 15)
            part = functools.partial(_every, offset=k % step, step=step)
            yield _values(codes, self.zero, part(scale), None if minimum is None else part(minimum))

    def _inputs(self, x: Array) -> list[Array]:
        """x [R, in] in parts that fit `_planes`."""
        if self.bits == 8:
            return [x]
        runs = x.reshape(len(x), -1, 2, self.half)
        return [runs[:, :, k].reshape(len(x), -1) for k in range(2)]


def from_leaves(leaves: dict[str, Any], layout: Layout, dtype: Any) -> Grouped:
    """The matrix of arrays (or shapes) named as in `Layout.leaves`."""
    name = np.dtype(dtype).name
    return Grouped(**leaves, bits=layout.bits, half=layout.half, zero=layout.zero, dtype=name)


def _product(inner: Array, outer: Array | None) -> Array:
    """Float32 scales [out, groups]."""
    inner = jnp.asarray(inner).astype(jnp.float32)
    if outer is None:
        return inner
    outer = jnp.asarray(outer).astype(jnp.float32)
    spread = inner.reshape(*outer.shape, -1) * outer[..., None]
    return spread.reshape(inner.shape)


def _every(scales: Array, offset: int, step: int) -> Array:
    """Scales of one nibble's groups."""
    return scales if step == 1 else scales.reshape(len(scales), -1, step)[:, :, offset]


def _values(codes: Array, zero: int, scale: Array, minimum: Array | None) -> Array:
    grouped = codes.reshape(*scale.shape, -1).astype(jnp.float32)
    if zero:
        grouped -= zero
    grouped *= scale[..., None]
    if minimum is not None:
        grouped += minimum[..., None]
    return grouped.reshape(codes.shape)


def _fused(weight: Grouped, x: Array) -> Array:
    """[R, out] float32 as one sum of products a row."""
    planes = list(weight._planes())
    parts = weight._inputs(x.astype(jnp.float32))
    rows = [
        jnp.sum(sum(p[r] * plane for p, plane in zip(parts, planes, strict=True)), axis=-1)
        for r in range(len(x))
    ]
    return jnp.stack(rows)


def _dot(weight: Grouped, x: Array) -> Array:
    """[R, out] float32 by dequantising to x's dtype."""
    contract = (((1,), (1,)), ((), ()))
    products = [
        jax.lax.dot_general(
            part, plane.astype(x.dtype), contract, preferred_element_type=jnp.float32
        )
        for part, plane in zip(weight._inputs(x), weight._planes(), strict=True)
    ]
    return sum(products[1:], start=products[0])


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
