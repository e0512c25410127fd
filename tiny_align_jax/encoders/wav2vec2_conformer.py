"""wav2vec2 with Conformer layers, relative or rotary positions.

The checkpoints carry a positional convolution that the published network never applies; it is left
out here too. transformers lets the convolution inside a layer read padded frames; here they are
zero, as beyond the end of an unpadded utterance, so a batch equals its single utterances.

Source: Wang et al. 2020 (arXiv 2010.05171, fairseq S2T), Gulati et al. 2020 (arXiv 2005.08100);
relative attention of Dai et al. 2019 (arXiv 1901.02860), section 3.3; layer order and tensor names
of transformers' Wav2Vec2Conformer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from tiny_align_jax.encoders import _blocks, _hf, _waveform, _waveform_model
from tiny_align_jax.encoders._waveform import CTC_HEAD_MAP, num_frames, preprocess
from tiny_align_jax.types import ConfigError, Rule

__all__ = [
    "CTC_HEAD_MAP",
    "HF_MODEL_TYPES",
    "PARAM_MAP",
    "Config",
    "Encoder",
    "config_from_hf",
    "num_frames",
    "preprocess",
]

HF_MODEL_TYPES = ("wav2vec2-conformer",)
_ACTIVATIONS = {"gelu": _blocks.gelu, "swish": jax.nn.silu, "silu": jax.nn.silu}
_BATCH_NORM_EPSILON = 1e-5
_SINUSOID_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Config(_waveform.Config):
    """Widths, read from the checkpoint; the defaults are wav2vec2-conformer-rel-pos-large's.

    Attributes:
        position: 'relative' (Transformer-XL), 'rotary', or None.
        rotary_base: base of the rotary wavelengths.
        depthwise_kernel: width of the convolution inside a layer, odd.
        activation: of the feed-forward parts and the convolution.
    """

    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_dim: int = 4096
    conv_bias: bool = True
    conv_norm: str = "layer"
    pre_norm: bool = True
    position: str | None = "relative"
    rotary_base: float = 10_000.0
    depthwise_kernel: int = 31
    activation: str = "swish"

    def __post_init__(self):
        super().__post_init__()
        problems = []
        if self.position not in ("relative", "rotary", None):
            problems.append(f"position={self.position!r} is not 'relative', 'rotary' or None")
        if self.activation not in _ACTIVATIONS:
            problems.append(f"activation={self.activation!r}, known: {', '.join(_ACTIVATIONS)}")
        if self.depthwise_kernel % 2 == 0:
            problems.append(f"depthwise_kernel={self.depthwise_kernel} is not odd")
        if problems:
            raise ConfigError("encoder config cannot work: " + "; ".join(problems))


def config_from_hf(hf: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed config.json and preprocessor_config.json.

    Raises:
        ConfigError: listing every missing or unhandled attribute.
    """
    needed = {ours: theirs for ours, theirs in _waveform.HF_NAMES.items() if ours != "pre_norm"}
    expected = dict(_waveform.HF_EXPECTED) | {"do_stable_layer_norm": True}
    del expected["hidden_act"]
    return _waveform.read_config(
        Config,
        hf,
        preprocessor,
        HF_MODEL_TYPES,
        needed=needed
        | {"activation": "hidden_act", "depthwise_kernel": "conv_depthwise_kernel_size"},
        optional={"position": "position_embeddings_type", "rotary_base": "rotary_embedding_base"},
        expected=expected,
        ignored=("max_source_positions",),  # sinusoids are made for the frames there are
    )


_ROOT = r"(?:wav2vec2_conformer\.)?"
_LAYER = _ROOT + r"encoder\.layers\.(?P<layer>\d+)\."
PARAM_MAP: tuple[Rule, ...] = (
    *_waveform.front_end_map("wav2vec2_conformer"),
    Rule(_ROOT + r"encoder\.pos_conv_embed\..*", None),
    Rule(_ROOT + r"encoder\.embed_positions\..*", None),
    *_hf.norm(_LAYER + "ffn1_layer_norm", "layers/ffn1/norm"),
    *_hf.dense(_LAYER + r"ffn1\.intermediate_dense", "layers/ffn1/in"),
    *_hf.dense(_LAYER + r"ffn1\.output_dense", "layers/ffn1/out"),
    *_hf.norm(_LAYER + "self_attn_layer_norm", "layers/attention_norm"),
    *_hf.dense(_LAYER + r"self_attn\.linear_q", "layers/attention/query"),
    *_hf.dense(_LAYER + r"self_attn\.linear_k", "layers/attention/key"),
    *_hf.dense(_LAYER + r"self_attn\.linear_v", "layers/attention/value"),
    *_hf.dense(_LAYER + r"self_attn\.linear_out", "layers/attention/out"),
    _hf.dense(_LAYER + r"self_attn\.linear_pos", "layers/attention/position")[0],  # no bias
    Rule(_LAYER + r"self_attn\.pos_bias_u", "layers/attention/content_bias"),
    Rule(_LAYER + r"self_attn\.pos_bias_v", "layers/attention/position_bias"),
    *_hf.norm(_LAYER + r"conv_module\.layer_norm", "layers/conv/norm"),
    Rule(_LAYER + r"conv_module\.pointwise_conv1\.weight", "layers/conv/in/kernel", "conv1d"),
    Rule(_LAYER + r"conv_module\.depthwise_conv\.weight", "layers/conv/depthwise/kernel", "conv1d"),
    *_hf.norm(_LAYER + r"conv_module\.batch_norm", "layers/conv/batch_norm"),
    Rule(_LAYER + r"conv_module\.batch_norm\.running_mean", "layers/conv/batch_norm/mean"),
    Rule(_LAYER + r"conv_module\.batch_norm\.running_var", "layers/conv/batch_norm/var"),
    Rule(_LAYER + r"conv_module\.batch_norm\.num_batches_tracked", None),
    Rule(_LAYER + r"conv_module\.pointwise_conv2\.weight", "layers/conv/out/kernel", "conv1d"),
    *_hf.norm(_LAYER + "ffn2_layer_norm", "layers/ffn2/norm"),
    *_hf.dense(_LAYER + r"ffn2\.intermediate_dense", "layers/ffn2/in"),
    *_hf.dense(_LAYER + r"ffn2\.output_dense", "layers/ffn2/out"),
    *_hf.norm(_LAYER + "final_layer_norm", "layers/final_norm"),
)


class FeedForward(nn.Module):
    """Norm and two linear layers."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        """Frames [B, T, E] to frames [B, T, E]."""
        y = _blocks.layer_norm(self.dtype, "norm")(x_BTE)
        y = _blocks.Dense(self.config.ffn_dim, dtype=self.dtype, name="in")(y)
        y = _ACTIVATIONS[self.config.activation](y)
        return _blocks.Dense(self.config.dim, dtype=self.dtype, name="out")(y)


class FrozenBatchNorm(nn.Module):
    """Batch norm with the statistics of the checkpoint."""

    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        """Normalised [B, T, E]."""
        shape = x_BTE.shape[-1:]
        mean, bias = (self.param(n, nn.initializers.zeros, shape) for n in ("mean", "bias"))
        var, scale = (self.param(n, nn.initializers.ones, shape) for n in ("var", "scale"))
        factor = scale * jax.lax.rsqrt(var + _BATCH_NORM_EPSILON)
        return ((x_BTE - mean) * factor + bias).astype(self.dtype)


class ConvModule(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution over valid frames."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Frames [B, T, E] to frames [B, T, E]."""
        dim, dtype = self.config.dim, self.dtype

        def conv(width: int, kernel: int, name: str, groups: int = 1) -> nn.Conv:
            return nn.Conv(
                width, (kernel,), feature_group_count=groups, use_bias=False, dtype=dtype, name=name
            )

        y = _blocks.layer_norm(dtype, "norm")(x_BTE)
        y = jax.nn.glu(conv(2 * dim, 1, "in")(y))
        y = jnp.where(mask_BT[..., None], y, 0)
        y = conv(dim, self.config.depthwise_kernel, "depthwise", dim)(y)
        y = _ACTIVATIONS[self.config.activation](FrozenBatchNorm(dtype, name="batch_norm")(y))
        return conv(dim, 1, "out")(y)


class Attention(nn.Module):
    """Self-attention with relative or rotary positions, softmax in float32."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Attended frames [B, T, E]."""
        config = self.config
        # The published rotary variant turns the layer's input, before the projections.
        turned = _rotate(x_BTE, config) if config.position == "rotary" else x_BTE
        query_BTHK = self._heads("query", turned)
        key_BTHK = self._heads("key", turned)
        value_BTHK = self._heads("value", x_BTE)
        bias_BHTT = None
        if config.position == "relative":
            query_BTHK, bias_BHTT = self._relative(query_BTHK)
        attended = jax.nn.dot_product_attention(
            query_BTHK, key_BTHK, value_BTHK, bias=bias_BHTT, mask=mask_BT[:, None, None, :]
        )
        return _blocks.Dense(config.dim, dtype=self.dtype, name="out")(
            attended.reshape(x_BTE.shape)
        )

    def _heads(self, name: str, x: jax.Array, use_bias: bool = True) -> jax.Array:
        y = _blocks.Dense(self.config.dim, use_bias, dtype=self.dtype, name=name)(x)
        return y.reshape(*y.shape[:-1], self.config.num_heads, -1)

    def _relative(self, query_BTHK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Query for the content scores, and the scaled position scores [B, H, T, T]."""
        frames, num_heads, width = query_BTHK.shape[1:]
        zeros = nn.initializers.zeros
        content_HK = self.param("content_bias", zeros, (num_heads, width)).astype(self.dtype)
        position_HK = self.param("position_bias", zeros, (num_heads, width)).astype(self.dtype)
        sinusoids_RE = _sinusoids(frames, self.config.dim).astype(self.dtype)
        position_RHK = self._heads("position", sinusoids_RE, use_bias=False)
        scores_BHTR = jnp.einsum(
            "bthk,rhk->bhtr",
            query_BTHK + position_HK,
            position_RHK,
            preferred_element_type=jnp.float32,
        )
        return query_BTHK + content_HK, _shift(scores_BHTR)[..., :frames] * width**-0.5


def _sinusoids(frames: int, dim: int) -> jax.Array:
    """Sines (even) and cosines (odd columns) of distances T - 1 ... -(T - 1), [2 T - 1, dim]."""
    distance_R1 = jnp.arange(frames - 1, -frames, -1, dtype=jnp.float32)[:, None]
    rate = jnp.exp(jnp.arange(0, dim, 2, dtype=jnp.float32) * -(jnp.log(_SINUSOID_BASE) / dim))
    angle = distance_R1 * rate
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(-1, dim)


def _shift(scores_BHTR: jax.Array) -> jax.Array:
    """Moves row i left by T - 1 - i, so that column j holds distance i - j."""
    batch, heads, rows, columns = scores_BHTR.shape
    padded = jnp.pad(scores_BHTR, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return padded.reshape(batch, heads, columns + 1, rows)[:, :, 1:].reshape(scores_BHTR.shape)


def _rotate(x_BTE: jax.Array, config: Config) -> jax.Array:
    """Rotary positions on each head's part of the frames."""
    x = x_BTE.reshape(*x_BTE.shape[:2], config.num_heads, -1)
    width = x.shape[-1]
    rate = config.rotary_base ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle_TK = jnp.tile(jnp.arange(x.shape[1])[:, None] * rate, 2)
    cos, sin = (f(angle_TK)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    half = jnp.concatenate([-x[..., width // 2 :], x[..., : width // 2]], axis=-1)
    return (x * cos + half * sin).reshape(x_BTE.shape)


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Frames [B, T, E] to frames [B, T, E]."""
        config, dtype = self.config, self.dtype
        x_BTE = x_BTE + 0.5 * FeedForward(config, dtype, name="ffn1")(x_BTE)
        y = _blocks.layer_norm(dtype, "attention_norm")(x_BTE)
        x_BTE = x_BTE + Attention(config, dtype, name="attention")(y, mask_BT)
        x_BTE = x_BTE + ConvModule(config, dtype, name="conv")(x_BTE, mask_BT)
        x_BTE = x_BTE + 0.5 * FeedForward(config, dtype, name="ffn2")(x_BTE)
        return _blocks.layer_norm(jnp.float32, "final_norm")(x_BTE)


class Encoder(_waveform_model.Encoder):
    """The frozen encoder; call it as wav2vec2's."""

    config: Config
    layer_class: ClassVar[type[nn.Module]] = ConformerLayer

    def add_position(self, x_BTE: jax.Array) -> jax.Array:
        """Unchanged: positions enter in the attention of each layer."""
        return x_BTE
