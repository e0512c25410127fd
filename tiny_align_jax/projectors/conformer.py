"""Conformer projector: attention for what is far, depthwise convolution for what is near.

Source: Conformer (arXiv 2005.08100, section 2): half feed-forward, attention, convolution module, half
feed-forward, norm. Deviations: layer norm in place of batch norm (padding and batch size change
nothing), rotary positions in place of relative ones, frame stacking in place of convolutional
subsampling, and the final norm that all our projectors share.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks, _layers, _pooling
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

WIDTHS = ("dim", "mlp_dim")


@dataclasses.dataclass(frozen=True)
class Config(_pooling.PoolingConfig):
    """Shape of the projector; pooling keys as in `_pooling.PoolingConfig`, 'attention' included.

    Attributes:
        stack: neighbouring encoder frames joined into one token.
        num_layers: conformer layers.
        dim: model width.
        num_heads: attention heads; must divide `dim`.
        mlp_dim: hidden width of the feed-forward halves.
        kernel_width: taps of the depthwise convolution.
        positions: 'none', 'sinusoidal', 'learned' or 'rotary'.
        max_positions: longest input of 'learned' positions, in tokens.
        dropout: rate on the input and inside the layers.
    """

    stack: int = 4
    num_layers: int = 3
    dim: int = 384
    num_heads: int = 6
    mlp_dim: int = 1536
    kernel_width: int = 15
    positions: str = "rotary"
    max_positions: int = 512
    dropout: float = 0.2

    def __post_init__(self):
        problems = [
            *_pooling.wrong_pooling(self, _pooling.POOLINGS),
            *checks.below(self, 1, "stack", "num_layers", "dim", "mlp_dim", "kernel_width"),
            *checks.unlisted(self, positions=_blocks.POSITIONS),
            *_blocks.wrong_heads(self),
        ]
        checks.refuse("conformer", problems)


def num_audio_tokens(config: Config, num_frames: int) -> int:
    """Audio tokens that `num_frames` encoder frames become."""
    return _pooling.pooled_tokens(config, -(-num_frames // config.stack))


class Layer(nn.Module):
    """One conformer layer."""

    config: Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask_BA: Array, *, train: bool = False) -> Array:
        c = self.config
        drop = Dropout(c.dropout, deterministic=not train)
        x = x + 0.5 * drop(self._feed_forward("first", x))
        h = self._norm("attention_norm", x)
        attention = _blocks.Attention(
            c.num_heads, c.positions == "rotary", dtype=self.dtype, name="attention"
        )
        x = x + drop(attention(h, h, mask_BA))
        x = x + drop(self._convolution(x, mask_BA))
        x = x + 0.5 * drop(self._feed_forward("second", x))
        return self._norm("norm", x)

    def _norm(self, name: str, x: Array) -> Array:
        return nn.LayerNorm(dtype=self.dtype, name=name)(x)

    def _feed_forward(self, name: str, x: Array) -> Array:
        c = self.config
        h = nn.silu(
            nn.Dense(c.mlp_dim, dtype=self.dtype, name=f"{name}_up")(self._norm(f"{name}_norm", x))
        )
        return nn.Dense(c.dim, dtype=self.dtype, name=f"{name}_down")(h)

    def _convolution(self, x: Array, mask_BA: Array) -> Array:
        c = self.config
        h = self._norm("conv_norm", x)
        h = nn.glu(nn.Dense(2 * c.dim, dtype=self.dtype, name="conv_in")(h))
        conv = _layers.MaskedConv(
            c.dim, c.kernel_width, depthwise=True, dtype=self.dtype, name="depthwise"
        )
        h = nn.silu(self._norm("depthwise_norm", conv(h, mask_BA)[0]))
        return nn.Dense(c.dim, dtype=self.dtype, name="conv_out")(h)


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
        x, mask_BA = _blocks.stack_frames(features_BTE.astype(self.dtype), frame_mask_BT, c.stack)
        x = nn.Dense(c.dim, dtype=self.dtype, name="input")(x)
        x = _blocks.add_positions(self, x, c.positions, c.max_positions)
        x = Dropout(c.dropout, deterministic=not train)(x)
        layer = Layer(c, self.dtype, name="layers")
        x = _layers.scan_layers(layer, x, mask_BA, num_layers=c.num_layers, train=train)
        pool = _pooling.Pool(c, c.num_heads, dtype=self.dtype, name="pool")
        x, mask_BA = pool(x, mask_BA)
        x = nn.Dense(self.out_dim, dtype=self.dtype, name="projection")(x)
        return _blocks.OutputNorm(self.out_rms, name="output_norm")(x), mask_BA
