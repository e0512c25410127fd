"""Continuous integrate-and-fire: the projector decides where one token ends and the next begins.

A transformer gives every frame a weight between 0 and 1. Weights are added up over time, and each time
the sum passes a whole number a token fires: the weighted sum of the frames since the last one. Where
'adaptive' pooling cuts speech into equal slices, the cuts are learnt here.

Source: Dong and Xu, "CIF: Continuous Integrate-and-Fire" (arXiv 1905.11235); for speech to an LLM's
embeddings, Wav2Prompt (arXiv 2406.00522). Deviations: the number of tokens is fixed beforehand (an
objective never tells the projector its target), so there is no quantity loss: with firing 'count' there
are `num_tokens` places, those that never fill hold a learned vector, and the loss on them (end of text)
trains the weights; with 'rate' weights are scaled so that tokens come at a fixed rate, at learnt borders.
All of it is one product with a matrix of overlaps instead of a recursion.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

FIRINGS = ("count", "rate")
WIDTHS = ("dim", "mlp_dim")
# A weight of 0.27 at first: 3.4 tokens a second at 12.5 frames a second, about English's rate.
_FIRST_BIAS = -1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the projector.

    Attributes:
        firing: 'count' (up to `num_tokens` tokens, as weights add up) or 'rate' (one token for every
            `pool_stride` stacked frames).
        num_tokens: places of 'count' (the casted token size T); weights beyond them are cut.
        pool_stride: stacked frames a token of 'rate'.
        stack: neighbouring encoder frames joined before the layers.
        num_layers: transformer layers before the weights.
        dim: model width.
        num_heads: attention heads; must divide `dim`.
        mlp_dim: hidden width of the feed-forward blocks and of the output MLP.
        positions: 'none', 'sinusoidal', 'learned' or 'rotary'.
        max_positions: longest input of 'learned' positions, in stacked frames.
        dropout: rate on the input and inside the layers.
    """

    firing: str = "count"
    num_tokens: int = 16
    pool_stride: int = 2
    stack: int = 4
    num_layers: int = 4
    dim: int = 512
    num_heads: int = 8
    mlp_dim: int = 2048
    positions: str = "rotary"
    max_positions: int = 512
    dropout: float = 0.2

    def __post_init__(self):
        counts = ("num_tokens", "pool_stride", "stack", "num_layers", "dim", "mlp_dim")
        problems = [
            *checks.unlisted(self, firing=FIRINGS, positions=_blocks.POSITIONS),
            *checks.below(self, 1, *counts),
            *_blocks.wrong_heads(self),
        ]
        checks.refuse("cif", problems)


def num_audio_tokens(config: Config, num_frames: int) -> int:
    """Audio tokens that `num_frames` encoder frames become."""
    if config.firing == "count":
        return config.num_tokens
    return -(-num_frames // (config.stack * config.pool_stride))


class Projector(nn.Module):
    """Attributes and call as `bridgeformer.Projector`."""

    config: Config
    out_dim: int
    out_rms: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features_BTE: Array, frame_mask_BT: Array, *, train: bool = False
    ) -> tuple[Array, Array]:
        """Encoder frames -> audio_BAD float32 and its mask."""
        c = self.config
        x, mask = _blocks.stack_frames(features_BTE.astype(self.dtype), frame_mask_BT, c.stack)
        x = _blocks.Mlp(c.dim, c.dim, dtype=self.dtype, name="input_mlp")(x)
        x = _blocks.add_positions(self, x, c.positions, c.max_positions)
        x = Dropout(c.dropout, deterministic=not train)(x)
        x = _blocks.encoder_layers(
            x,
            mask,
            num_layers=c.num_layers,
            num_heads=c.num_heads,
            mlp_dim=c.mlp_dim,
            dropout=c.dropout,
            rotary=c.positions == "rotary",
            dtype=self.dtype,
            train=train,
        )
        x = nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x)
        weights, valid = self._weights(x, mask)
        empty = self.param("empty", nn.initializers.normal(1.0), (c.dim,))
        x = fire(x, weights, empty, valid.shape[1])
        x = _blocks.Mlp(c.mlp_dim, self.out_dim, dtype=self.dtype, name="output_mlp")(x)
        return _blocks.OutputNorm(self.out_rms, name="output_norm")(x), valid

    def _weights(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """Weight of every stacked frame, float32, and which of the tokens to come are valid."""
        c = self.config
        bias = nn.initializers.constant(_FIRST_BIAS)
        logits = nn.Dense(1, bias_init=bias, dtype=jnp.float32, name="weight")(x)[..., 0]
        weights = jnp.where(mask, jax.nn.sigmoid(logits), 0.0)
        if c.firing == "count":
            return weights, jnp.ones((x.shape[0], c.num_tokens), bool)
        count = -(-mask.sum(-1, keepdims=True) // c.pool_stride)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
        places = jnp.arange(-(-x.shape[1] // c.pool_stride))[None]
        return weights * count / total, places < count


def fire(x: Array, weights: Array, empty: Array, num_tokens: int) -> Array:
    """Sums of frames between whole numbers of the running weight, and of `empty` for what is missing.

    Args:
        x: frames [B, A, D].
        weights: float32 [B, A], 0 where a frame is not valid.
        empty: [D], fills a token up to a weight of 1.
        num_tokens: tokens that may fire.

    Returns:
        [B, num_tokens, D].
    """
    after = jnp.cumsum(weights, axis=1)[:, None]
    token = jnp.arange(num_tokens)[None, :, None]
    overlap = jnp.minimum(after, token + 1) - jnp.maximum(after - weights[:, None], token)
    overlap = jnp.maximum(overlap, 0.0)
    missing = jnp.maximum(1.0 - overlap.sum(-1, keepdims=True), 0.0)
    fired = jnp.einsum("bka,bad->bkd", overlap.astype(x.dtype), x)
    return fired + (missing * empty).astype(x.dtype)
