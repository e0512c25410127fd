"""Linear projector: neighbouring frames joined, one matrix, a norm at the embedding table's scale.

The floor of every comparison of projectors. Source: LLaVA-style single matrix (arXiv 2304.08485) over
stacked frames; deviation: the final norm that all our projectors share.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks, _pooling
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

WIDTHS = ()  # its size follows from the widths on both sides and `stack`


@dataclasses.dataclass(frozen=True)
class Config(_pooling.PoolingConfig):
    """Shape of the projector; pooling keys as in `_pooling.PoolingConfig`.

    Attributes:
        stack: neighbouring encoder frames joined into one token.
        dropout: rate on the stacked frames.
    """

    stack: int = 4
    dropout: float = 0.0

    def __post_init__(self):
        checks.refuse("linear", [*_pooling.wrong_pooling(self), *checks.below(self, 1, "stack")])


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
        x, mask_BA = _blocks.stack_frames(features_BTE.astype(self.dtype), frame_mask_BT, c.stack)
        x = Dropout(c.dropout, deterministic=not train)(x)
        x = nn.Dense(self.out_dim, dtype=self.dtype, name="projection")(x)
        x, mask_BA = _pooling.Pool(c, dtype=self.dtype, name="pool")(x, mask_BA)
        return _blocks.OutputNorm(self.out_rms, name="output_norm")(x), mask_BA
