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
_ENOUGH_ROWS, _ENOUGH_WORDS = 4096, 64  # of a sum on a GPU
_HALF_BITS = 16  # of a word
_MANTISSA = 0x4B000000  # bits of 2.0**23, whose mantissa counts in ones
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


def _planes(weight: Grouped, parts: list[Array]) -> list[Array]:
    """Float32 values of the codes in `parts`."""
    scale = _product(weight.scale, weight.outer_scale)
    minimum = _product(weight.minimum, weight.outer_minimum)
    group = weight.shape[-1] // scale.shape[-1]
    step = _groups_at_once(weight, group)
    planes = []
    for k, codes in enumerate(parts):
        scales, minima = (_every(values, k % step, step) for values in (scale, minimum))
        planes.append(_values(codes, weight.zero, scales, minima))
    return planes


def _groups_at_once(weight: Grouped, group: int) -> int:
    """Groups that the codes of one byte lie in: one of a run's length lies in one nibble, longer ones in both."""
    return 2 if weight.bits == 4 and group <= weight.half else 1


def words(tree: PyTree) -> PyTree:
    """Parameters, or their shapes, with the codes of every `Grouped` as uint32: the same bytes.

    A GPU loads four bytes at a time as fast as one. A CPU does not compute with them as they lie.
    """

    def widen(node: Any) -> Any:
        if not isinstance(node, Grouped) or node.codes.dtype == np.uint32:
            return node
        codes = node.codes
        if isinstance(codes, jax.ShapeDtypeStruct):
            shape = (*codes.shape[:-1], codes.shape[-1] // 4)
            return dataclasses.replace(node, codes=jax.ShapeDtypeStruct(shape, np.uint32))
        if isinstance(codes, jax.Array):
            fours = codes.reshape(*codes.shape[:-1], -1, 4)
            return dataclasses.replace(node, codes=jax.lax.bitcast_convert_type(fours, jnp.uint32))
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


def _fused(weight: Grouped, x: Array) -> Array:
    """[R, out] float32 as one sum of products a row."""
    x = jnp.asarray(x).astype(jnp.float32)
    if jnp.asarray(weight.codes).dtype == jnp.uint32:
        return jnp.stack([_sum_of_words(weight, row) for row in x])
    planes, inputs = _planes(weight, _byte_codes(weight)), _byte_inputs(weight, x)
    rows = []
    for r in range(len(x)):
        products = [part[r] * plane for part, plane in zip(inputs, planes, strict=True)]
        rows.append(jnp.sum(functools.reduce(jnp.add, products), axis=-1))
    return jnp.stack(rows)


def _sum_of_words(weight: Grouped, x: Array) -> Array:
    """[out] of one row x [in]: the codes of a word are summed before they are scaled, once a word."""
    scale = _product(weight.scale, weight.outer_scale)
    minimum = _product(weight.minimum, weight.outer_minimum)
    step = _groups_at_once(weight, len(x) // scale.shape[-1])
    fields, inputs = _fields(weight), _word_inputs(weight, x)
    total: Any = 0.0
    for k in range(step):
        scales, minima = (_every(values, k, step) for values in (scale, minimum))
        places = range(k, _HALF_BITS // weight.bits, step)
        sums = [_scaled_sum(fields, inputs, place, weight.bits) for place in places]
        grouped = functools.reduce(jnp.add, sums).reshape(*scales.shape, -1) * scales[..., None]
        if minima is not None:
            inputs_sum = functools.reduce(jnp.add, inputs[k::step])
            grouped += inputs_sum.reshape(scales.shape[-1], -1) * minima[..., None]
        total += grouped
    return _sum_in_parts(total.reshape(len(total), -1))


def _sum_in_parts(values: Array) -> Array:
    """Sums over the last axis [out, words] -> [out], of few rows in parts, summed up by whoever reads them.

    Else XLA takes a sum of 2048 rows for too little work for a GPU, and writes all its terms to memory first.
    """
    num_rows, width = values.shape
    possible = [n for n in (2, 4) if width % n == 0 and width // n >= _ENOUGH_WORDS]
    parts = 1
    while num_rows * parts < _ENOUGH_ROWS and 2 * parts in possible:
        parts *= 2
    sums = jnp.sum(values.reshape(num_rows, parts, -1), axis=-1)
    return functools.reduce(jnp.add, [sums[:, part] for part in range(parts)])


def _fields(weight: Grouped) -> list[Array]:
    """Codes of every word, less the code of zero, as float32 [out, words], lowest bits first.

    A GPU converts integers at half speed or less, so bits are put where they are the last ones of 2^23 as a
    float, and that is subtracted, exactly. Codes are not shifted down: each is times 2^s, its place s in half a word.
    """
    bits, codes, zero = weight.bits, jnp.asarray(weight.codes), weight.zero
    if bits == 8:  # signed: from here on counted from -128
        codes, zero = codes ^ jnp.uint32(0x80808080), 128
    found = []
    for half in (codes, codes >> _HALF_BITS):
        for place in range(0, _HALF_BITS, bits):
            masked = half & jnp.uint32((2**bits - 1) << place) | jnp.uint32(_MANTISSA)
            whole = jax.lax.bitcast_convert_type(masked, jnp.float32)
            found.append(whole - jnp.float32(2.0**23 + zero * 2.0**place))
    return found


def _scaled_sum(fields: list[Array], inputs: list[Array], place: int, bits: int) -> Array:
    """Products of the fields at one place of both halves of a word, [out, words], without their 2^s."""
    other = place + _HALF_BITS // bits
    both = fields[place] * inputs[place] + fields[other] * inputs[other]
    return both * jnp.float32(2.0 ** -(place * bits)) if place else both


def _word_inputs(weight: Grouped, x: Array) -> list[Array]:
    """One row x [in] in parts [words] that go with `_fields`."""
    parts = [part.reshape(-1, 4) for part in _byte_inputs(weight, x[None])]
    return [part[:, byte] for byte in range(4) for part in parts]


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
