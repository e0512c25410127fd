"""Q-Former: learned queries read the frames; over the whole utterance, or window by window.

Without a window the output is a fixed number of tokens, which fits objectives that match token by
token. With one, every `window` stacked frames are read by the same queries on their own, which gives
tokens in the order of time at a fixed rate, as objectives with a learned alignment need.

Source: BLIP-2 (arXiv 2301.12597) for queries with self- and cross-attention, SALMONN (arXiv
2310.13289) for the window. Deviations: pre-norm, cross-attention in every layer, no text branch, no
initialisation from BERT, sinusoidal positions on the frames (a set of frames has no order otherwise).
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks, _layers
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

WIDTHS = ("dim", "mlp_dim")


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the projector.

    Attributes:
        num_tokens: queries: of the utterance (the casted token size T), or of each window.
        window: stacked frames in a window; 0 reads the whole utterance at once.
        stack: neighbouring encoder frames joined into one key.
        num_layers: layers of self-attention, cross-attention and feed-forward.
        dim: model width.
        num_heads: attention heads; must divide `dim`.
        mlp_dim: hidden width of the feed-forward blocks.
        positions: on the frames, 'none' or 'sinusoidal'.
        dropout: rate on the frames and inside the layers.
    """

    num_tokens: int = 16
    window: int = 0
    stack: int = 4
    num_layers: int = 3
    dim: int = 512
    num_heads: int = 8
    mlp_dim: int = 2048
    positions: str = "sinusoidal"
    dropout: float = 0.1

    def __post_init__(self):
        problems = [
            *checks.below(self, 1, "num_tokens", "stack", "num_layers", "dim", "mlp_dim"),
            *checks.unlisted(self, positions=("none", "sinusoidal")),
            *_blocks.wrong_heads(self),
            *checks.below(self, 0, "window"),
        ]
        checks.refuse("qformer", problems)


def num_audio_tokens(config: Config, num_frames: int) -> int:
    """Audio tokens that `num_frames` encoder frames become."""
    if not config.window:
        return config.num_tokens
    return -(-num_frames // (config.stack * config.window)) * config.num_tokens


class Layer(nn.Module):
    """Queries attend to each other, then to the frames, then pass a feed-forward block."""

    config: Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, carry, mask_BT: Array, *, train: bool = False):
        queries, keys = carry
        c = self.config
        drop = Dropout(c.dropout, deterministic=not train)
        everywhere = jnp.ones(queries.shape[:2], bool)
        h = self._norm("self_norm", queries)
        queries = queries + drop(self._attention("self_attention")(h, h, everywhere))
        h = self._norm("cross_norm", queries)
        queries = queries + drop(self._attention("cross_attention")(h, keys, mask_BT))
        h = self._norm("mlp_norm", queries)
        mlp = _blocks.Mlp(c.mlp_dim, c.dim, dtype=self.dtype, name="mlp")
        return queries + drop(mlp(h)), keys

    def _norm(self, name: str, x: Array) -> Array:
        return nn.LayerNorm(dtype=self.dtype, name=name)(x)

    def _attention(self, name: str) -> nn.Module:
        return _blocks.Attention(self.config.num_heads, dtype=self.dtype, name=name)


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
        c, batch = self.config, features_BTE.shape[0]
        x, mask = _blocks.stack_frames(features_BTE.astype(self.dtype), frame_mask_BT, c.stack)
        x = nn.Dense(c.dim, dtype=self.dtype, name="input")(x)
        if c.window:
            x, mask = _windows(x, mask, c.window)
        x = _blocks.add_positions(self, x, c.positions, 0)
        x = Dropout(c.dropout, deterministic=not train)(x)
        x = nn.LayerNorm(dtype=self.dtype, name="input_norm")(x)
        queries = self.param("queries", nn.initializers.normal(1.0), (c.num_tokens, c.dim))
        queries = jnp.broadcast_to(queries.astype(self.dtype), (x.shape[0], *queries.shape))
        layer = Layer(c, self.dtype, name="layers")
        queries, _ = _layers.scan_layers(
            layer, (queries, x), mask, num_layers=c.num_layers, train=train
        )
        valid = jnp.broadcast_to(mask.any(-1, keepdims=True), queries.shape[:2])
        queries = queries.reshape(batch, -1, c.dim)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(queries)
        x = nn.Dense(self.out_dim, dtype=self.dtype, name="projection")(x)
        audio_BAD = _blocks.OutputNorm(self.out_rms, name="output_norm")(x)
        # Queries over the whole utterance are a fixed number, also where no frame is valid.
        valid = valid.reshape(batch, -1) if c.window else jnp.ones(audio_BAD.shape[:2], bool)
        return audio_BAD, valid


def _windows(x: Array, mask_BA: Array, window: int) -> tuple[Array, Array]:
    """[B, A, D] -> [B * ceil(A / window), window, D] and its mask."""
    batch, tokens, dim = x.shape
    extra = -tokens % window
    x = jnp.pad(x, ((0, 0), (0, extra), (0, 0)))
    mask_BA = jnp.pad(mask_BA, ((0, 0), (0, extra)))
    rows = batch * (tokens + extra) // window
    return x.reshape(rows, window, dim), mask_BA.reshape(rows, window)
