"""Layers that decoder families share: the one matrix product, norms, attention, gated MLP.

Dimension key of this package, beyond `types`: G key/value heads, M key slots (of the cache, or N
without one), F hidden width of the MLP, Q query heads per key/value head.

Every weight matrix is used through `dense` and every embedding table through `embed_ids` and
`attend_table`. A slot of the parameter tree may hold a quantised representation instead of an array:
anything with the methods of `QuantisedWeight` or `QuantisedTable` (leaves stacked on the layer axis
like the array it stands for, so that the scan over layers slices it).

Matrices are [out, in], as checkpoints store them. Decoding one token reads every weight once and does
little else, and this is the layout in which XLA can do that (see `product`).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

from tiny_align_jax.llms._cache import Context, KeyValues, LayerView, read_write
from tiny_align_jax.llms._rope import rotate
from tiny_align_jax.types import Array, QuantisedWeight

_INIT = nn.initializers.normal(stddev=0.02)
_FEW_ROWS = 2
# Queries times keys of one new token up to which a GPU takes sums, not dots: a profile with dots shows the layer's
# keys copied and the scores written, scaled, masked and cast in kernels of their own. Not yet timed.
_FEW_SCORES = 2**20


@runtime_checkable
class QuantisedTable(Protocol):
    """What may stand where an embedding table [V, D] is expected."""

    def take(self, ids: Array) -> Array:
        """Rows `ids`, [..., D], in the dtype the table computes in."""
        ...

    def attend(self, x: Array) -> Array:
        """x [..., D] times the transposed table: float32[..., V]."""
        ...


def dense(params: Mapping[str, Any], x: Array, dtype: Any = None) -> Array:
    """x [..., in] times `params['weight']` [out, in] transposed, plus `params['bias']` if any.

    The result has x's dtype, or `dtype` (an untied head gives float32 logits, unrounded).
    """
    weight, dtype = params["weight"], x.dtype if dtype is None else dtype
    if isinstance(weight, QuantisedWeight):
        y = weight.matmul(x, dtype)
    else:
        y = product(x, weight.astype(x.dtype), dtype)
    return y if "bias" not in params else y + params["bias"].astype(y.dtype)


def embed_ids(table: Array | QuantisedTable, ids: Array) -> Array:
    """Rows `ids` of an embedding table, [..., D], in the table's dtype."""
    if isinstance(table, QuantisedTable):
        return table.take(ids)
    return jnp.take(jnp.asarray(table), ids, axis=0, mode="clip")


def attend_table(table: Array | QuantisedTable, x: Array) -> Array:
    """Scores of every row of a tied table: x [..., D] -> float32[..., V]."""
    if isinstance(table, QuantisedTable):
        return table.attend(x)
    return product(x, table.astype(x.dtype), jnp.float32)


def product(x: Array, weight: Array, dtype: Any) -> Array:
    """x [..., in] times weight [out, in] transposed, summed in float32 and returned in `dtype`.

    On GPUs, a dot of few rows inside a scan costs three times the weights' memory traffic: the layer is
    copied out of the stack, or the products are written out before they are summed. A plain sum of
    products fuses into one kernel that reads the weights once. A decoded token takes 1.09 instead of
    2.39 ms (Llama-3.2-1B) and 0.89 instead of 1.28 ms (SmolLM2-135M); two rows still gain, four do not
    (H200, bfloat16, 512 slots, JAX 0.11). CPUs have good kernels for the dot.
    """
    few, many = (functools.partial(form, dtype=dtype) for form in (_sum_of_products, _dot))
    if math.prod(x.shape[:-1]) > _FEW_ROWS:
        return many(x, weight)
    return jax.lax.platform_dependent(x, weight, cuda=few, rocm=few, default=many)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: Array, weight: Array, dtype: Any) -> Array:
    # Transposed by name, not by the numbers of the contracted axes: so XLA's CPU back end reads a layer
    # out of the stack inside the product; else it copies it first (SmolLM2-135M, 1 row: 32 against 55 ms).
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, weight.T, contract, preferred_element_type=dtype)


def _dot_fwd(x: Array, weight: Array, dtype: Any):
    return _dot(x, weight, dtype), (x, weight)


def _dot_bwd(dtype: Any, residuals: tuple[Array, Array], grad: Array):
    # In the factors' dtype: the gradient of a float32 result would turn a bfloat16 matrix into float32
    # first and multiply at half the speed, as a profile of Llama 3.2 1B's step shows (H100).
    x, weight = residuals
    grad = grad.astype(x.dtype)
    to_x = jax.lax.dot_general(grad, weight, (((grad.ndim - 1,), (0,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    to_weight = jax.lax.dot_general(grad, x, ((rows, rows), ((), ())))
    return to_x.astype(x.dtype), to_weight.astype(weight.dtype)


_dot.defvjp(_dot_fwd, _dot_bwd)


def _sum_of_products(x: Array, weight: Array, dtype: Any) -> Array:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    sums = [jnp.sum(row * weight.astype(jnp.float32), axis=-1) for row in rows]
    return jnp.stack(sums).reshape(*x.shape[:-1], weight.shape[0]).astype(dtype)


class Dense(nn.Module):
    """`dense` with declared parameters `weight` [out, in] and, if asked for, `bias` [out]."""

    features: int
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # flax's check of stored shapes only knows arrays, so a quantised weight goes round it.
        weight = self.get_variable("params", "weight")
        if not isinstance(weight, QuantisedWeight):
            weight = self.param("weight", _INIT, (self.features, x.shape[-1]))
        params = {"weight": weight}
        if self.use_bias:
            params["bias"] = self.param("bias", nn.initializers.zeros, (self.features,))
        return dense(params, x, self.dtype)


class Embedder(nn.Module):
    """Holds the table `embedding` [V, D]; rows are looked up outside, by the family's `embed`."""

    vocab_size: int
    dim: int

    @nn.compact
    def __call__(self) -> Any:
        stored = self.get_variable("params", "embedding")
        if isinstance(stored, QuantisedTable):
            return stored
        return self.param("embedding", _INIT, (self.vocab_size, self.dim))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; Gemma's checkpoints store scale - 1 (`offset` 1)."""

    eps: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * (self.offset + scale)).astype(x.dtype)


HeadNorm = Callable[[int, str], nn.Module]


def rms_head_norm(eps: float, offset: float = 0.0) -> HeadNorm:
    """Makes RMS norms of queries or keys [B, N, heads, K] over K, with one scale for all heads.

    A function, not a method of the block: a method would create the norm in the block's scope.
    """
    return lambda num_heads, name: RMSNorm(eps, offset, name=name)


def layer_head_norm(eps: float) -> HeadNorm:
    """Makes layer norms of queries or keys [B, N, heads, K] over K, with a scale for every head."""
    return lambda num_heads, name: PerHeadLayerNorm(eps, num_heads, name=name)


class LayerNorm(nn.Module):
    """Layer norm in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (_standardise(x, self.eps) * scale + bias).astype(x.dtype)


class PerHeadLayerNorm(nn.Module):
    """Layer norm of [B, N, heads, K] over K, every head with a scale of its own, no bias."""

    eps: float
    num_heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scales = [
            self.param(f"scale_{head}", nn.initializers.ones, (x.shape[-1],))
            for head in range(self.num_heads)
        ]
        return (_standardise(x, self.eps) * jnp.stack(scales)).astype(x.dtype)


def _standardise(x: Array, eps: float) -> Array:
    """Zero mean and unit variance over the last axis, float32."""
    x32 = x.astype(jnp.float32)
    x32 -= jnp.mean(x32, axis=-1, keepdims=True)
    return x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)


class Attention(nn.Module):
    """Causal self-attention with grouped heads, rotary positions and a KV cache.

    Attributes:
        num_heads: H. num_kv_heads: G. head_dim: K.
        qkv_bias: biases on queries, keys and values.
        out_bias: bias on the output projection.
        fused: one matrix `qkv` [(H + 2G) K, D] instead of `q`, `k`, `v`; parameters that hold one say so
            themselves (`tiny_align_jax.joined`).
        scale: multiplies the logits; None means K ** -0.5.
        soft_cap: logits become cap * tanh(logits / cap); None leaves them.
        head_norm: makes the norm of queries or keys [B, N, heads, K] from a number of heads and a
            name; None for no norm.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    fused: bool = False
    scale: float | None = None
    soft_cap: float | None = None
    head_norm: HeadNorm | None = None

    @nn.compact
    def __call__(
        self, x_BND: Array, view: LayerView, context: Context, cache: KeyValues | None
    ) -> tuple[Array, KeyValues | None]:
        q_BNHK, k_BNGK, v_BNGK = self._project(x_BND)
        if self.head_norm is not None:
            q_BNHK = self.head_norm(self.num_heads, "q_norm")(q_BNHK)
            k_BNGK = self.head_norm(self.num_kv_heads, "k_norm")(k_BNGK)
        cos_BNR, sin_BNR, mask_BNM = context.of_kind(view.kind)
        q_BNHK, k_BNGK = rotate(q_BNHK, cos_BNR, sin_BNR), rotate(k_BNGK, cos_BNR, sin_BNR)
        k_BGMK, v_BGMK, cache = read_write(cache, view, context.length, k_BNGK, v_BNGK)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        out_BNHK = attend(q_BNHK, k_BGMK, v_BGMK, mask_BNM, scale, self.soft_cap)
        out_BNX = out_BNHK.reshape(*x_BND.shape[:2], -1)
        return Dense(x_BND.shape[-1], self.out_bias, name="out")(out_BNX), cache

    def _project(self, x_BND: Array) -> list[Array]:
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        widths = [h * self.head_dim for h in heads]
        if self.fused or self.has_variable("params", "qkv"):
            qkv = Dense(sum(widths), self.qkv_bias, name="qkv")(x_BND)
            parts = jnp.split(qkv, [widths[0], widths[0] + widths[1]], axis=-1)
        else:
            named = zip("qkv", widths, strict=True)
            parts = [Dense(w, self.qkv_bias, name=n)(x_BND) for n, w in named]
        return [p.reshape(*p.shape[:2], h, -1) for p, h in zip(parts, heads, strict=True)]


def attend(
    q_BNHK: Array,
    k_BGMK: Array,
    v_BGMK: Array,
    mask_BNM: Array,
    scale: float,
    soft_cap: float | None = None,
) -> Array:
    """Attention with a float32 softmax, [B, N, H, K]; grouped heads share keys without copies."""
    batch, length, heads, width = q_BNHK.shape
    groups, slots = k_BGMK.shape[1:3]
    q_BNGQK = q_BNHK.reshape(batch, length, groups, heads // groups, width)
    weigh = functools.partial(_weights, mask_BNM=mask_BNM, scale=scale, soft_cap=soft_cap)

    def by_dots(q_BNGQK, k_BGMK, v_BGMK):
        weights = weigh(_scores(q_BNGQK, k_BGMK)).astype(v_BGMK.dtype)
        return jnp.einsum("bgqnm,bgmk->bngqk", weights, v_BGMK).astype(q_BNHK.dtype)

    def by_sums(q_BNGQK, k_BGMK, v_BGMK):
        q_BGQ1K = q_BNGQK[:, 0, :, :, None].astype(jnp.float32)
        scores_BGQM = jnp.sum(q_BGQ1K * k_BGMK[:, :, None].astype(jnp.float32), axis=-1)
        weights_BGQM = weigh(scores_BGQM[:, :, :, None])[:, :, :, 0]
        values_BG1MK = v_BGMK[:, :, None].astype(jnp.float32)
        out_BGQK = jnp.sum(weights_BGQM[..., None] * values_BG1MK, axis=-2)
        return out_BGQK[:, None].astype(q_BNHK.dtype)

    if length == 1 and batch * heads * slots <= _FEW_SCORES:
        out_BNGQK = jax.lax.platform_dependent(
            q_BNGQK, k_BGMK, v_BGMK, cuda=by_sums, rocm=by_sums, default=by_dots
        )
    else:
        out_BNGQK = by_dots(q_BNGQK, k_BGMK, v_BGMK)
    return out_BNGQK.reshape(batch, length, heads, width)


def _weights(scores_BGQNM: Array, mask_BNM: Array, scale: float, soft_cap: float | None) -> Array:
    scores_BGQNM = scores_BGQNM * scale
    if soft_cap is not None:
        scores_BGQNM = soft_cap * jnp.tanh(scores_BGQNM / soft_cap)
    # Finite, so that a row of padding that sees nothing stays finite (a mean over all slots).
    scores_BGQNM = jnp.where(mask_BNM[:, None, None], scores_BGQNM, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores_BGQNM, axis=-1)


@jax.custom_vjp
def _scores(q_BNGQK: Array, k_BGMK: Array) -> Array:
    """Products of queries and keys, float32 [B, G, Q, N, M]; gradients as in `_dot`."""
    return jnp.einsum("bngqk,bgmk->bgqnm", q_BNGQK, k_BGMK, preferred_element_type=jnp.float32)


def _scores_fwd(q_BNGQK: Array, k_BGMK: Array):
    return _scores(q_BNGQK, k_BGMK), (q_BNGQK, k_BGMK)


def _scores_bwd(residuals: tuple[Array, Array], grad_BGQNM: Array):
    q_BNGQK, k_BGMK = residuals
    grad_BGQNM = grad_BGQNM.astype(q_BNGQK.dtype)
    return (
        jnp.einsum("bgqnm,bgmk->bngqk", grad_BGQNM, k_BGMK),
        jnp.einsum("bgqnm,bngqk->bgmk", grad_BGQNM, q_BNGQK),
    )


_scores.defvjp(_scores_fwd, _scores_bwd)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); `fused` keeps gate and up in one matrix [2F, D]."""

    hidden_dim: int
    activation: Callable[[Array], Array]
    use_bias: bool = False
    fused: bool = False

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        if self.fused or self.has_variable("params", "gate_up"):
            both = Dense(2 * self.hidden_dim, self.use_bias, name="gate_up")(x_BND)
            gate, up = jnp.split(both, 2, axis=-1)
        else:
            gate = Dense(self.hidden_dim, self.use_bias, name="gate")(x_BND)
            up = Dense(self.hidden_dim, self.use_bias, name="up")(x_BND)
        return Dense(x_BND.shape[-1], self.use_bias, name="down")(self.activation(gate) * up)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}
