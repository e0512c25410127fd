"""Dense layers and norms whose biases and scales get their gradients as sums in two stages.

The gradient of a bias is a sum over all tokens of a batch. XLA makes a column reduction of it, which keeps D / 32
blocks of a GPU busy while each works the whole chain of element-wise operations before the sum off again: on
one H100 these kernels took 0.84 of the 2.2 ms of an `embedlink` step, and 1.8 of the 4.4 ms of an `embedlink_ctc` step.
Blocks of tokens first and then the blocks keeps all of it busy, and the first stage becomes part of the kernel that
makes what is summed.

Half precision only, which is what accelerators train in: in float32 these are flax's own layers.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from tiny_align_jax.attention import HALVES
from tiny_align_jax.types import Array

# Blocks of tokens that are summed up side by side.
_GROUPS = 64


def dense(
    features: int | Sequence[int], dtype: jnp.dtype, name: str, axis: int | Sequence[int] = -1
) -> nn.Module:
    """`nn.DenseGeneral`: same parameters, same start, same values."""
    if dtype in HALVES:
        return _Dense(features, axis, dtype, name=name)
    if isinstance(features, int) and axis == -1:
        return nn.Dense(features, dtype=dtype, name=name)
    return nn.DenseGeneral(features, axis=axis, dtype=dtype, name=name)


def layer_norm(dtype: jnp.dtype, name: str) -> nn.Module:
    """`nn.LayerNorm`: same parameters, same values up to one more rounding."""
    return _LayerNorm(dtype, name=name) if dtype in HALVES else nn.LayerNorm(dtype=dtype, name=name)


def dense_gelu(features: int, dtype: jnp.dtype, name: str) -> Callable[[Array], Array]:
    """`dense`, then GELU; in half precision nothing but the product is kept for the gradient."""
    if dtype in HALVES:
        return _Dense(features, -1, dtype, is_gelu=True, name=name)
    return lambda x: nn.gelu(dense(features, dtype, name)(x))


def denses(
    features: Sequence[int], dtype: jnp.dtype, names: Sequence[str]
) -> Callable[[Array], Sequence[Array]]:
    """Several `dense` of one input, with parameters of their own; in half precision one product in each direction.

    XLA joins them forwards, too, but not backwards, where every part of the input's gradient is a product.
    """
    if dtype not in HALVES:
        return lambda x: [dense(features, dtype, name)(x) for name in names]

    def joined(x: Array) -> Sequence[Array]:
        made = [_Weights(tuple(features), (x.shape[-1],), dtype, name=name)() for name in names]
        axis = -1 - len(features)
        kernel, bias = (jnp.stack(parts, axis) for parts in zip(*made, strict=True))
        y = _product(jnp.asarray(x, dtype), kernel, (x.ndim - 1,))
        return _unstack(axis, add_bias(y, bias))

    return joined


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unstack(axis: int, x: Array) -> tuple[Array, ...]:
    """The parts along an axis; their gradients are joined by one copy, not added to zeros one by one."""
    return tuple(jnp.take(x, i, axis) for i in range(x.shape[axis]))


_unstack.defvjp(
    lambda axis, x: (_unstack(axis, x), None),
    lambda axis, _, grads: (jnp.stack(grads, axis),),
)


class _Weights(nn.Module):
    features: tuple[int, ...]
    inner: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        return _weights(self, self.inner, self.features, self.dtype)


def _weights(
    module: nn.Module, inner: tuple[int, ...], features: tuple[int, ...], dtype: jnp.dtype
) -> tuple[Array, Array]:
    """A module's kernel, in its compute dtype, and bias, as `nn.DenseGeneral` names and starts them."""

    def init(key, shape):
        flat = nn.initializers.lecun_normal()(key, (math.prod(inner), math.prod(features)))
        return flat.reshape(shape)

    kernel = module.param("kernel", init, (*inner, *features)).astype(dtype)
    return kernel, module.param("bias", nn.initializers.zeros, features)


class _Dense(nn.Module):
    features: int | Sequence[int]
    axis: int | Sequence[int]
    dtype: jnp.dtype
    is_gelu: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        axes = tuple(sorted(axis % x.ndim for axis in axes))
        inner = tuple(x.shape[axis] for axis in axes)
        kernel, bias = _weights(self, inner, features, self.dtype)
        y = _product(jnp.asarray(x, self.dtype), kernel, axes)
        if self.is_gelu:
            return jax.checkpoint(lambda y, bias: nn.gelu(add_bias(y, bias)))(y, bias)
        return add_bias(y, bias)


def _product(x: Array, kernel: Array, axes: tuple[int, ...]) -> Array:
    contracted = (axes, tuple(range(len(axes))))
    # Else the bias becomes part of the product, for which XLA copies each layer's slices of both.
    return jax.lax.optimization_barrier(jax.lax.dot_general(x, kernel, (contracted, ((), ()))))


class _LayerNorm(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        normed = standardise(x)
        return add_bias(scale_columns(normed, scale), bias)


@jax.checkpoint
def standardise(x: Array) -> Array:
    """Zero mean and unit variance over the last axis, worked out in float32, in x's dtype.

    Worked out again for the gradient: with nothing kept, XLA makes one kernel of it in each direction
    instead of three, and the variance of the differences (not of the squares) lets it.
    """
    x32 = jnp.asarray(x, jnp.float32)
    x32 = x32 - x32.mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """x + bias, over the last axes; `bias` in float32."""
    return x + bias.astype(x.dtype)


@jax.custom_vjp
def scale_columns(x: Array, scale: Array) -> Array:
    """x * scale, over the last axis; `scale` in float32."""
    return x * scale.astype(x.dtype)


def column_sums(x: Array, shape: Sequence[int]) -> Array:
    """Sums over all axes but the last ones, which have `shape`; summed in float32."""
    # Without the barrier XLA makes one sum of both.
    flat = x.reshape(-1, math.prod(shape))
    groups = math.gcd(flat.shape[0], _GROUPS)
    parts = flat.reshape(groups, -1, flat.shape[1]).sum(1, dtype=jnp.float32)
    return jax.lax.optimization_barrier(parts).sum(0).reshape(shape)


def _add_bias_bwd(bias, grad):
    return grad, column_sums(grad, bias.shape)


def _scale_columns_bwd(residuals, grad):
    x, scale = residuals
    return grad * scale.astype(grad.dtype), column_sums(grad * x, scale.shape)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_bwd)
scale_columns.defvjp(lambda x, scale: (scale_columns(x, scale), (x, scale)), _scale_columns_bwd)
