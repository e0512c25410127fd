"""MLP projector: neighbouring frames joined, one or more hidden layers, a norm at the table's scale.

Source: SLAM-ASR (arXiv 2402.08846, section 2): frames stacked by 5, Linear 2048, ReLU, Linear.
Deviations: 4 frames by default (80 ms of Whisper, as the other projectors here), dropout, the final
norm, and pooling as a switch.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks, _pooling
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu}
WIDTHS = ("hidden_dim",)


@dataclasses.dataclass(frozen=True)
class Config(_pooling.PoolingConfig):
    """Shape of the projector; pooling keys as in `_pooling.PoolingConfig`.

    Attributes:
        stack: neighbouring encoder frames joined into one token.
        num_hidden: hidden layers.
        hidden_dim: their width.
        activation: 'relu' or 'gelu'.
        dropout: rate on the stacked frames and on hidden layers.
    """

    stack: int = 4
    num_hidden: int = 1
    hidden_dim: int = 2048
    activation: str = "relu"
    dropout: float = 0.1

    def __post_init__(self):
        problems = [
            *_pooling.wrong_pooling(self),
            *checks.below(self, 1, "stack", "num_hidden", "hidden_dim"),
            *checks.unlisted(self, activation=tuple(ACTIVATIONS)),
        ]
        checks.refuse("mlp", problems)


def num_audio_tokens(config: Config, num_frames: int) -> int:
    """Audio tokens that `num_frames` encoder frames become."""
    return _pooling.pooled_tokens(config, -(-num_frames // config.stack))


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
        drop = Dropout(c.dropout, deterministic=not train)
        x, mask_BA = _blocks.stack_frames(features_BTE.astype(self.dtype), frame_mask_BT, c.stack)
        x = drop(x)
        for i in range(c.num_hidden):
            x = nn.Dense(c.hidden_dim, dtype=self.dtype, name=f"hidden_{i}")(x)
            x = drop(ACTIVATIONS[c.activation](x))
        x, mask_BA = _pooling.Pool(c, dtype=self.dtype, name="pool")(x, mask_BA)
        x = nn.Dense(self.out_dim, dtype=self.dtype, name="projection")(x)
        return _blocks.OutputNorm(self.out_rms, name="output_norm")(x), mask_BA
