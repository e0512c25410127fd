"""BridgeFormer, the paper's projector: a transformer encoder without positional encoding.

ASR features -> input MLP -> encoder layers -> adaptive pooling -> output MLP -> norm at the
embedding table's scale.

Source: Tiny-Align (arXiv 2411.13766), method section. The paper's widths, depth and number of pooled
tokens are not known to us; ours are the defaults below. Deviations: a frame-rate mode (`pooling
'none'`) for objectives that learn the alignment, frame stacking in front of the input MLP (four
Whisper frames become one token of 80 ms, so attention costs a sixteenth), and the final norm.
Positional encoding stays a switch because the paper's ablation removes it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tiny_align_jax import attention, checks
from tiny_align_jax.projectors import _blocks, _layers, _sums
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

POOLINGS = ("none", "adaptive", "window", "stride", "attention")
WIDTHS = ("dim", "mlp_dim")  # Config keys that `matching.match_params` scales together


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the projector.

    Attributes:
        num_layers: transformer encoder layers.
        dim: model width.
        num_heads: attention heads; must divide `dim`.
        mlp_dim: hidden width of the feed-forward blocks and of the output MLP.
        mix_layers: encoder layers that stand side by side in the features and are averaged with learned
            weights; 1 takes the features as they are.
        stack: neighbouring encoder frames joined into one token before the input MLP.
        pooling: 'none' (frame rate), 'adaptive' (average over `num_tokens` equal spans of the valid
            frames), 'window' (`num_tokens` spans of `pool_stride` tokens each: equal spans of a fixed
            window as Whisper pads to one, so that a span is a stretch of time and those behind the
            speech are empty; what lies behind the last span is not read), 'stride' (average over
            `pool_stride` tokens) or 'attention' (`num_tokens` learned queries).
        num_tokens: output length of 'adaptive', 'window' and 'attention' (the casted token size T).
        pool_stride: span of 'stride' and 'window' pooling.
        positions: 'none' (the paper), 'sinusoidal', 'learned' or 'rotary'.
        max_positions: longest input of 'learned' positions, in tokens.
        dropout: rate on attention and feed-forward outputs and on the input.
        attention: 'auto', 'xla' or 'cudnn'; see `tiny_align_jax.attention`.
        unroll: layers that run in one turn of the loop over layers; 0 for all.
    """

    num_layers: int = 4
    dim: int = 512
    num_heads: int = 8
    mlp_dim: int = 2048
    mix_layers: int = 1
    stack: int = 4
    pooling: str = "none"
    num_tokens: int = 16
    pool_stride: int = 2
    positions: str = "none"
    max_positions: int = 512
    dropout: float = 0.2
    attention: str = "auto"
    unroll: int = 0

    def __post_init__(self):
        problems = [
            *checks.unlisted(self, pooling=POOLINGS, attention=attention.KINDS),
            *checks.unlisted(self, positions=_blocks.POSITIONS),
            *_blocks.wrong_heads(self),
        ]
        checks.refuse("bridgeformer", problems)


def num_audio_tokens(config: Config, num_frames: int) -> int:
    """Audio tokens that `num_frames` encoder frames become."""
    if config.pooling in ("adaptive", "window", "attention"):
        return config.num_tokens
    tokens = -(-num_frames // config.stack)
    return -(-tokens // config.pool_stride) if config.pooling == "stride" else tokens


class Projector(nn.Module):
    """BridgeFormer.

    Attributes:
        config: its shape.
        out_dim: width D of the LLM's embeddings.
        out_rms: root mean square of the embedding table's rows; the output starts at this scale.
        dtype: compute dtype; parameters stay float32.
    """

    config: Config
    out_dim: int
    out_rms: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features_BTE: Array, frame_mask_BT: Array, *, train: bool = False
    ) -> tuple[Array, Array]:
        """Projects encoder frames to audio tokens.

        Args:
            features_BTE: encoder frames; entries where the mask is False are ignored.
            frame_mask_BT: True at valid frames (a prefix of each row).
            train: dropout on (needs a 'dropout' rng).

        Returns:
            audio_BAD float32 and its validity mask_BA.
        """
        c = self.config
        x = features_BTE.astype(self.dtype)
        if c.mix_layers > 1:
            x = _layers.LayerMix(c.mix_layers, name="layer_mix")(x, frame_mask_BT)
        x, mask_BA = _blocks.stack_frames(x, frame_mask_BT, c.stack)
        x = _blocks.Mlp(c.dim, c.dim, dtype=self.dtype, name="input_mlp")(x)
        x = _blocks.add_positions(self, x, c.positions, c.max_positions)
        x = Dropout(c.dropout, deterministic=not train)(x)
        x = _blocks.encoder_layers(
            x,
            mask_BA,
            num_layers=c.num_layers,
            num_heads=c.num_heads,
            mlp_dim=c.mlp_dim,
            dropout=c.dropout,
            rotary=c.positions == "rotary",
            dtype=self.dtype,
            train=train,
            attention=c.attention,
            unroll=c.unroll,
        )
        x = _sums.layer_norm(self.dtype, "encoder_norm")(x)
        x, mask_BA = self._pool(x, mask_BA)
        x = _blocks.Mlp(c.mlp_dim, self.out_dim, dtype=self.dtype, name="output_mlp")(x)
        audio_BAD = _blocks.OutputNorm(self.out_rms, name="output_norm")(x)
        return audio_BAD, mask_BA

    def _pool(self, x: Array, mask_BA: Array) -> tuple[Array, Array]:
        c = self.config
        if c.pooling == "adaptive":
            return _blocks.adaptive_average(x, mask_BA, c.num_tokens), _all_valid(x, c.num_tokens)
        if c.pooling == "stride":
            return _blocks.stride_average(x, mask_BA, c.pool_stride)
        if c.pooling == "window":
            empty = self.param("empty", nn.initializers.normal(1.0), (c.dim,))
            return _window_average(x, mask_BA, c, empty), _all_valid(x, c.num_tokens)
        if c.pooling == "attention":
            pooled = _blocks.AttentionPool(
                c.num_tokens, c.num_heads, dtype=self.dtype, name="pool"
            )(x, mask_BA)
            return pooled, _all_valid(x, c.num_tokens)
        return x, mask_BA


def _window_average(x: Array, mask_BA: Array, config: Config, empty: Array) -> Array:
    """Averages over the first `num_tokens` spans of `pool_stride` tokens; `empty` where none is valid."""
    spans, filled = _blocks.stride_average(x, mask_BA, config.pool_stride)
    spans = jnp.where(filled[..., None], spans, empty.astype(x.dtype))[:, : config.num_tokens]
    missing = config.num_tokens - spans.shape[1]
    behind = jnp.broadcast_to(empty.astype(x.dtype), (x.shape[0], missing, config.dim))
    return jnp.concatenate([spans, behind], axis=1)


def _all_valid(x: Array, num_tokens: int) -> Array:
    return jnp.ones((x.shape[0], num_tokens), bool)


def param_count(config: Config, in_dim: int, out_dim: int) -> int:
    """Parameters for features of width `in_dim`, without allocating them."""
    module = Projector(config, out_dim, 1.0)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, 8, in_dim)), jnp.ones((1, 8), bool)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
