"""Pooling that projectors share: from frame rate to a fixed number of tokens, or to a lower rate.

Objectives that learn the alignment read tokens at frame rate ('none' or 'stride'); objectives that match
token by token need a fixed number of them ('adaptive' or 'attention').
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks
from tiny_align_jax.types import Array

AVERAGES = ("none", "adaptive", "stride")
POOLINGS = (*AVERAGES, "attention")


@dataclasses.dataclass(frozen=True)
class PoolingConfig:
    """Keys of every projector that pools at its end.

    Attributes:
        pooling: 'none' (frame rate), 'adaptive' (average over `num_tokens` equal spans of the valid
            tokens), 'stride' (average over `pool_stride` tokens) or, where a projector has attention,
            'attention' (`num_tokens` learned queries).
        num_tokens: output length of 'adaptive' and 'attention' (the casted token size T).
        pool_stride: span of 'stride'.
    """

    pooling: str = "none"
    num_tokens: int = 16
    pool_stride: int = 2


def wrong_pooling(config: PoolingConfig, choices: tuple[str, ...] = AVERAGES) -> list[str]:
    """What is wrong with the pooling keys."""
    problems = checks.unlisted(config, pooling=choices)
    return [*problems, *checks.below(config, 1, "num_tokens", "pool_stride")]


def pooled_tokens(config: PoolingConfig, tokens: int) -> int:
    """Tokens after pooling `tokens` of them."""
    if config.pooling in ("adaptive", "attention"):
        return config.num_tokens
    return -(-tokens // config.pool_stride) if config.pooling == "stride" else tokens


class Pool(nn.Module):
    """Pools x [B, A, D] under its mask as `config` says.

    Attributes:
        config: its pooling keys are read.
        num_heads: of 'attention' pooling; must divide D.
        dtype: compute dtype.
    """

    config: PoolingConfig
    num_heads: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask_BA: Array) -> tuple[Array, Array]:
        c = self.config
        if c.pooling == "stride":
            return _blocks.stride_average(x, mask_BA, c.pool_stride)
        if c.pooling == "none":
            return x, mask_BA
        everywhere = jnp.ones((x.shape[0], c.num_tokens), bool)
        if c.pooling == "adaptive":
            return _blocks.adaptive_average(x, mask_BA, c.num_tokens), everywhere
        pool = _blocks.AttentionPool(c.num_tokens, self.num_heads, dtype=self.dtype, name="queries")
        return pool(x, mask_BA), everywhere
