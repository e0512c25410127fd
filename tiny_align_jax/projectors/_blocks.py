"""Building blocks that the projectors share: frame stacking, pooling, attention, output norm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import attention
from tiny_align_jax.projectors import _sums
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array, ConfigError

POSITIONS = ("none", "sinusoidal", "learned", "rotary")


def wrong_heads(config: Any) -> list[str]:
    """What is wrong with a config whose `num_heads` do not divide its `dim`."""
    heads, dim = config.num_heads, config.dim
    return [f"num_heads={heads} must divide dim={dim}"] if heads <= 0 or dim % heads else []


def stack_frames(features_BTE: Array, mask_BT: Array, stack: int) -> tuple[Array, Array]:
    """Joins `stack` neighbouring frames; a token is valid if any of its frames is.

    Invalid frames become zeros first, so that what lies behind an utterance cannot matter.

    Returns:
        [B, ceil(T / stack), stack * E] and its mask.
    """
    batch, frames, width = features_BTE.shape
    features_BTE = jnp.where(mask_BT[..., None], features_BTE, 0)
    extra = -frames % stack
    features_BTE = jnp.pad(features_BTE, ((0, 0), (0, extra), (0, 0)))
    mask_BT = jnp.pad(mask_BT, ((0, 0), (0, extra)))
    tokens = (frames + extra) // stack
    mask_BA = mask_BT.reshape(batch, tokens, stack).any(-1)
    return features_BTE.reshape(batch, tokens, stack * width), mask_BA


class Mlp(nn.Module):
    """Dense, GELU, Dense."""

    hidden_dim: int
    out_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _sums.dense_gelu(self.hidden_dim, self.dtype, "up")(x)
        return _sums.dense(self.out_dim, self.dtype, "down")(x)


class Attention(nn.Module):
    """Multi-head attention with a key mask, optional rotary positions and separate queries."""

    num_heads: int
    rotary: bool = False
    dtype: jnp.dtype = jnp.float32
    kind: str = "auto"

    @nn.compact
    def __call__(self, queries_BAD: Array, keys_BTD: Array, mask_BT: Array) -> Array:
        dim = queries_BAD.shape[-1]
        shape = (self.num_heads, dim // self.num_heads)
        if queries_BAD is keys_BTD:
            q, k, v = _sums.denses(shape, self.dtype, ("query", "key", "value"))(keys_BTD)
        else:
            q = _sums.dense(shape, self.dtype, "query")(queries_BAD)
            k, v = _sums.denses(shape, self.dtype, ("key", "value"))(keys_BTD)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        out = attention.attend(q, k, v, mask_BT, self.kind)
        return _sums.dense(dim, self.dtype, "out", axis=(-2, -1))(out)


class EncoderLayer(nn.Module):
    """Pre-norm transformer encoder layer."""

    num_heads: int
    mlp_dim: int
    dropout: float
    rotary: bool = False
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, mask_BA: Array, *, train: bool = False) -> Array:
        drop = Dropout(self.dropout, deterministic=not train)
        h = _sums.layer_norm(self.dtype, "attention_norm")(x)
        attend = Attention(
            self.num_heads, self.rotary, self.dtype, self.attention, name="attention"
        )
        x = x + drop(attend(h, h, mask_BA))
        h = _sums.layer_norm(self.dtype, "mlp_norm")(x)
        return x + drop(Mlp(self.mlp_dim, x.shape[-1], dtype=self.dtype, name="mlp")(h))


def encoder_layers(
    x: Array,
    mask_BA: Array,
    *,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    dropout: float,
    rotary: bool,
    dtype: jnp.dtype,
    train: bool,
    attention: str = "auto",
    unroll: int = 0,
) -> Array:
    """A stack of `EncoderLayer`, scanned: parameters of all layers on a leading axis under 'layers'.

    One layer is traced instead of `num_layers`, and an optimizer has few, large arrays to update instead
    of many small ones. `unroll` layers run in one turn of the loop; 0 is all of them, because what a loop
    hands from turn to turn is copied: three layers in one turn save a CPU 18 % of an `embedlink` step and
    10 % of an `embedlink_ctc` step and compile as fast (docs/performance.md).
    """

    def body(layer, carry, _):
        return layer(carry, mask_BA, train=train), None

    layer = EncoderLayer(num_heads, mlp_dim, dropout, rotary, dtype, attention, name="layers")
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
        unroll=unroll or num_layers,
    )
    return scan(layer, x, None)[0]


class AttentionPool(nn.Module):
    """`num_tokens` learned queries that read the valid frames."""

    num_tokens: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask_BA: Array) -> Array:
        init = nn.initializers.normal(1.0)
        queries = self.param("queries", init, (self.num_tokens, x.shape[-1]))
        queries = jnp.broadcast_to(queries.astype(self.dtype), (x.shape[0], *queries.shape))
        return Attention(self.num_heads, dtype=self.dtype, name="attention")(queries, x, mask_BA)


class OutputNorm(nn.Module):
    """RMS norm whose scale starts at the embedding table's row RMS.

    Without it the output starts far from the scale that the LLM's first layer expects.
    """

    out_rms: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        is_half = x.dtype in attention.HALVES
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.out_rms), (x.shape[-1],))
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return _sums.scale_columns(x, scale) if is_half else x * scale


def adaptive_average(x: Array, mask_BA: Array, num_tokens: int) -> Array:
    """Averages the valid prefix of each row over `num_tokens` spans, as adaptive average pooling does.

    Span i of n valid tokens covers floor(i n / T) to ceil((i + 1) n / T), so spans overlap where n
    is no multiple of T and repeat where n < T.
    """
    n_B1 = jnp.maximum(mask_BA.sum(-1, keepdims=True), 1)
    span = jnp.arange(num_tokens)[None]
    start = (span * n_B1) // num_tokens
    end = -(-((span + 1) * n_B1) // num_tokens)
    index = jnp.arange(x.shape[1])[None, None]
    weights = (index >= start[..., None]) & (index < end[..., None])
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("bta,bad->btd", weights.astype(x.dtype), x)


def stride_average(x: Array, mask_BA: Array, stride: int) -> tuple[Array, Array]:
    """Averages each run of `stride` tokens over its valid ones."""
    batch, tokens, dim = x.shape
    extra = -tokens % stride
    x = jnp.pad(jnp.where(mask_BA[..., None], x, 0), ((0, 0), (0, extra), (0, 0)))
    counts = jnp.pad(mask_BA, ((0, 0), (0, extra))).reshape(batch, -1, stride).sum(-1)
    total = x.reshape(batch, -1, stride, dim).sum(2)
    return total / jnp.maximum(counts, 1)[..., None].astype(x.dtype), counts > 0


def sinusoids(length: int, dim: int) -> np.ndarray:
    """[length, dim] sines and cosines (Vaswani et al. 2017, section 3.5)."""
    rates = np.exp(-np.log(10_000.0) * np.arange(dim // 2) / max(dim // 2 - 1, 1))
    angles = np.arange(length)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def add_positions(module: nn.Module, x: Array, kind: str, max_positions: int) -> Array:
    """Adds absolute positions to x [B, A, D] ('none' and 'rotary' leave it as it is)."""
    length, dim = x.shape[1:]
    if kind == "sinusoidal":
        return x + jnp.asarray(sinusoids(length, dim), x.dtype)
    if kind == "learned":
        if length > max_positions:
            raise ConfigError(
                f"{length} audio tokens but max_positions={max_positions}; raise it or shorten the window"
            )
        init = nn.initializers.normal(0.02)
        table = module.param("positions", init, (max_positions, dim))
        return x + table[:length].astype(x.dtype)
    return x


def rotate(x_BAHK: Array) -> Array:
    """Rotary positions over the last axis (Su et al. 2021), base 10,000."""
    half = x_BAHK.shape[-1] // 2
    rates = 10_000.0 ** (-np.arange(half) / half)
    angles = jnp.arange(x_BAHK.shape[1])[:, None] * rates[None]
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x_BAHK[..., :half], x_BAHK[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BAHK.dtype)
