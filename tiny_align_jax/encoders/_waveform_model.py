"""Linen modules of the wav2vec2 family; plug-ins override the layer, its inputs and the position.

Padding never changes a valid frame: a frame counts as valid only if all of its samples are, norms
over time run over valid frames, and invalid frames are zeroed before the positional convolution
and masked in attention. transformers' group-norm models differ in a padded batch (their norm runs
over the padding too); ours equal their unpadded single-utterance output.

Source: Baevski et al. 2020 (arXiv 2006.11477); layer order and tensor names of transformers.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from tiny_align_jax.encoders import _blocks
from tiny_align_jax.encoders._waveform import Config, conv_lengths
from tiny_align_jax.types import Array


class TimeNorm(nn.Module):
    """Group norm with one group a channel: statistics over the valid frames of each utterance."""

    dtype: Any

    @nn.compact
    def __call__(self, x_BTC: Array, mask_BT: Array) -> jax.Array:
        """Normalised [B, T, C]; the statistics are float32."""
        x = jnp.asarray(x_BTC, jnp.float32)
        if jax.default_backend() == "cpu":
            # One utterance after the other: of a whole batch's norm XLA makes one kernel, whose copies of its
            # input no memory analysis shows (0.5 GB for eight utterances of HuBERT, 5 s each).
            mean_B1C, variance_B1C = jax.lax.map(lambda row: _over_time(*row), (x, mask_BT))
        else:
            mean_B1C, variance_B1C = jax.vmap(_over_time)(x, mask_BT)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = (x - mean_B1C) * jax.lax.rsqrt(variance_B1C + _blocks.LAYER_NORM_EPSILON) * scale + bias
        return y.astype(self.dtype)


def _over_time(x_TC: Array, mask_T: Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the valid frames of one utterance, [1, C] each."""
    valid = mask_T[:, None]
    count = jnp.maximum(jnp.sum(valid), 1)
    mean = jnp.sum(x_TC * valid, axis=0, keepdims=True) / count
    return mean, jnp.sum(jnp.square(x_TC - mean) * valid, axis=0, keepdims=True) / count


class ConvFrontEnd(nn.Module):
    """Strided convolutions over the waveform: 20 ms a frame in all published checkpoints."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, waveform_BS: Array, num_samples_B: Array) -> tuple[jax.Array, jax.Array]:
        """Frames [B, T, conv_dims[-1]] and their validity [B, T]."""
        config = self.config
        x = jnp.asarray(waveform_BS, self.dtype)[..., None]
        mask_BT = jnp.ones(waveform_BS.shape, bool)
        lengths = conv_lengths(config, jnp.asarray(num_samples_B))
        for i, length_B in enumerate(lengths):
            x = nn.Conv(
                config.conv_dims[i],
                config.conv_kernels[i : i + 1],
                config.conv_strides[i],
                padding="VALID",
                use_bias=config.conv_bias,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            mask_BT = jnp.arange(x.shape[1]) < length_B[:, None]
            if config.conv_norm == "layer":
                x = _blocks.layer_norm(self.dtype, f"norm{i}")(x)
            elif i == 0:
                x = TimeNorm(self.dtype, name="norm0")(x, mask_BT)
            x = _blocks.gelu(x)
        return x, mask_BT


class PositionConv(nn.Module):
    """Relative position from a wide grouped convolution with weight normalisation.

    The two factors of the kernel stay apart, as in the checkpoint; their product costs one pass
    over a few million numbers.
    """

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        """Position vectors [B, T, E] of frames that are zero where invalid."""
        width, groups, dim = (
            self.config.position_kernel,
            self.config.position_groups,
            x_BTE.shape[-1],
        )
        shape = (width, dim // groups, dim)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (dim,))
        kernel = jnp.asarray(kernel, jnp.float32)
        norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(1, 2), keepdims=True))
        y = jax.lax.conv_general_dilated(
            x_BTE,
            (kernel / norm * scale[:, None, None]).astype(self.dtype),
            window_strides=(1,),
            padding=[(width // 2, (width - 1) // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )
        return _blocks.gelu(y + bias.astype(self.dtype))


class TransformerLayer(nn.Module):
    """Post-norm or pre-norm transformer layer; families override `attend`."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array, *shared: Any) -> jax.Array:
        """Frames [B, T, E] to frames [B, T, E]; `shared` is handed to `attend`."""
        dtype = self.dtype if self.config.pre_norm else jnp.float32  # part of the residual stream
        attention_norm = _blocks.layer_norm(dtype, "attention_norm")
        ffn_norm = _blocks.layer_norm(dtype, "ffn_norm")
        if self.config.pre_norm:
            x_BTE = x_BTE + self.attend(attention_norm(x_BTE), *shared)
            return x_BTE + self.feed_forward(ffn_norm(x_BTE))
        x_BTE = attention_norm(x_BTE + self.attend(x_BTE, *shared))
        return ffn_norm(x_BTE + self.feed_forward(x_BTE))

    def attend(self, x_BTE: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Self-attention over valid frames."""
        return _blocks.Attention(self.config.num_heads, self.dtype, name="attention")(
            x_BTE, mask_BT
        )

    def feed_forward(self, x_BTE: jax.Array) -> jax.Array:
        """Two linear layers around a GELU."""
        y = _blocks.Dense(self.config.ffn_dim, dtype=self.dtype, name="ffn_in")(x_BTE)
        return _blocks.Dense(self.config.dim, dtype=self.dtype, name="ffn_out")(_blocks.gelu(y))


class Encoder(nn.Module):
    """The frozen encoder: convolutions, positional convolution, transformer layers.

    Attributes:
        config: widths.
        dtype: of the products and the result, float32 or bfloat16; the residual stream, norms'
            statistics and softmax stay float32.
    """

    config: Config
    dtype: Any = jnp.float32
    layer_class: ClassVar[type[nn.Module]] = TransformerLayer

    @nn.compact
    def __call__(
        self, inputs_B: Array, num_samples_B: Array, layers: tuple[int, ...] | None = None
    ) -> tuple[jax.Array, ...]:
        """Hidden states of a batch of padded waveforms.

        Args:
            inputs_B: stacked outputs of `preprocess`, [B, S].
            num_samples_B: valid samples a row; frames beyond `num_frames` of them hold no meaning.
            layers: which hidden states to return (static), None for all: 0 is the input of the
                first layer, num_layers (or -1) the final output.

        Returns:
            [B, T, E] for every index in `layers`.
        """
        config, dtype = self.config, self.dtype
        wanted = _blocks.wanted_layers(layers, config.num_layers)
        x_BTE, mask_BT = self._embed(inputs_B, num_samples_B)
        encoder_norm = _blocks.layer_norm(jnp.float32, "encoder_norm")
        if not config.pre_norm:
            x_BTE = encoder_norm(x_BTE)
        layer = self.layer_class(config, dtype, name="layers")
        shared = self.shared_inputs(x_BTE, mask_BT)
        states = _blocks.run_layers(layer, config.num_layers, x_BTE, wanted, dtype, *shared)
        if config.pre_norm and config.num_layers in states:
            states[config.num_layers] = encoder_norm(states[config.num_layers])
        return tuple(states[i].astype(dtype) for i in wanted)

    def _embed(self, waveform_BS: Array, num_samples_B: Array) -> tuple[jax.Array, jax.Array]:
        """Frames with position [B, T, E], and their validity [B, T]."""
        config, dtype = self.config, self.dtype
        x, mask_BT = ConvFrontEnd(config, dtype, name="front_end")(waveform_BS, num_samples_B)
        if config.feature_norm:
            x = _blocks.layer_norm(dtype, "feature_norm")(x)
        x_BTE = _blocks.Dense(config.dim, dtype=dtype, name="feature_projection")(x)
        x_BTE = jnp.where(mask_BT[..., None], x_BTE, 0)
        return self.add_position(x_BTE), mask_BT

    def add_position(self, x_BTE: jax.Array) -> jax.Array:
        """Frames that know their place, from frames that are zero where invalid."""
        return x_BTE + PositionConv(self.config, self.dtype, name="position_conv")(x_BTE)

    def shared_inputs(self, x_BTE: jax.Array, mask_BT: jax.Array) -> tuple[Any, ...]:
        """Arguments of every layer beside its input."""
        del x_BTE
        return (mask_BT,)
