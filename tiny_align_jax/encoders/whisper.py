"""Whisper's audio encoder, any released size, any window up to the position table's 30 s.

The encoder takes waveforms and makes the log-mel spectrogram itself, on the device. What follows
an utterance is silence up to the window and is attended to, as in Whisper's training; a shorter
window keeps the first rows of the position table. The window therefore belongs to the cache key.

Source: Radford et al. 2022 (arXiv 2212.04356); tensor names of transformers' Whisper.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tiny_align_jax.encoders import _blocks, _hf
from tiny_align_jax.encoders._log_mel import FFT_SAMPLES, HOP_SAMPLES, log_mel
from tiny_align_jax.types import SAMPLE_RATE_HZ, Array, ConfigError, Rule

HF_MODEL_TYPES = ("whisper",)
FRAME_SAMPLES = 2 * HOP_SAMPLES  # 20 ms: the second convolution halves the rate


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths, read from the checkpoint; the defaults are whisper-tiny's.

    Attributes:
        dim: width of a frame (E).
        num_layers: encoder layers.
        num_heads: attention heads (H).
        ffn_dim: width inside a layer's feed-forward part.
        num_mels: mel bands of the input.
        max_frames: rows of the position table, 20 ms each.
    """

    dim: int = 384
    num_layers: int = 4
    num_heads: int = 6
    ffn_dim: int = 1536
    num_mels: int = 80
    max_frames: int = 1500

    def __post_init__(self):
        if self.dim % self.num_heads:
            raise ConfigError(
                f"whisper: dim {self.dim} must be a multiple of num_heads {self.num_heads}"
            )


_HF_NAMES = {
    "dim": "d_model",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "ffn_dim": "encoder_ffn_dim",
    "num_mels": "num_mel_bins",
    "max_frames": "max_source_positions",
}


def config_from_hf(hf: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed config.json; attributes of the decoder are not read.

    Args:
        hf: config.json.
        preprocessor: preprocessor_config.json; if given, it has to agree with the log-mel here.

    Raises:
        ConfigError: listing every missing or unhandled attribute.
    """
    _hf.check_attributes(
        hf,
        HF_MODEL_TYPES,
        needed=_HF_NAMES.values(),
        expected={"activation_function": "gelu", "scale_embedding": False},
        ignored=(
            r"decoder_.*|max_target_positions|median_filter_width|num_hidden_layers",
            r"alignment_heads|lang_ids|lang_to_id|task_to_id|is_multilingual|no_timestamps_token_id",
        ),
        preprocessor=preprocessor,
        preprocessor_expected={
            "feature_size": hf.get("num_mel_bins"),
            "sampling_rate": SAMPLE_RATE_HZ,
            "hop_length": HOP_SAMPLES,
            "n_fft": FFT_SAMPLES,
            "dither": 0.0,
        },
    )
    return Config(**{ours: hf[theirs] for ours, theirs in _HF_NAMES.items()})


def num_frames(config: Config, num_samples: int) -> int:
    """Encoder frames that `num_samples` of audio reach into: one for every 20 ms begun."""
    del config  # every size has the same arithmetic
    return -(-num_samples // FRAME_SAMPLES)


def preprocess(config: Config, waveform_S: np.ndarray, window_samples: int) -> np.ndarray:
    """The waveform and silence up to the window, float32; the window grows to whole frames.

    Raises:
        AudioError: not one channel of 1 to `window_samples` samples.
        ConfigError: a window beyond the position table.
    """
    frames = num_frames(config, window_samples)
    if frames > config.max_frames:
        raise ConfigError(
            f"window of {window_samples} samples needs {frames} frames, but this Whisper has "
            f"{config.max_frames} positions; use at most {config.max_frames * FRAME_SAMPLES} samples"
        )
    padded = _blocks.pad_to_window(waveform_S, window_samples)
    return np.pad(padded, (0, frames * FRAME_SAMPLES - window_samples))


_ENCODER = r"(?:model\.)?encoder\."
_LAYER = _ENCODER + r"layers\.(?P<layer>\d+)\."

PARAM_MAP: tuple[Rule, ...] = (
    *_hf.conv(_ENCODER + "conv1", "conv1"),
    *_hf.conv(_ENCODER + "conv2", "conv2"),
    Rule(_ENCODER + r"embed_positions\.weight", "positions"),
    *_hf.norm(_LAYER + "self_attn_layer_norm", "layers/attention_norm"),
    *_hf.dense(_LAYER + r"self_attn\.q_proj", "layers/attention/query"),
    _hf.dense(_LAYER + r"self_attn\.k_proj", "layers/attention/key")[0],  # keys have no bias
    *_hf.dense(_LAYER + r"self_attn\.v_proj", "layers/attention/value"),
    *_hf.dense(_LAYER + r"self_attn\.out_proj", "layers/attention/out"),
    *_hf.norm(_LAYER + "final_layer_norm", "layers/ffn_norm"),
    *_hf.dense(_LAYER + "fc1", "layers/ffn_in"),
    *_hf.dense(_LAYER + "fc2", "layers/ffn_out"),
    *_hf.norm(_ENCODER + "layer_norm", "final_norm"),
    Rule(r"(?:model\.)?decoder\..*", None),
    Rule(r"proj_out\.weight", None),
)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        """Frames [B, T, E] to frames [B, T, E]."""
        config, dtype = self.config, self.dtype
        y = _blocks.layer_norm(dtype, "attention_norm")(x_BTE)
        attention = _blocks.Attention(config.num_heads, dtype, key_bias=False, name="attention")
        x_BTE = x_BTE + attention(y)
        y = _blocks.layer_norm(dtype, "ffn_norm")(x_BTE)
        y = _blocks.gelu(_blocks.Dense(config.ffn_dim, dtype=dtype, name="ffn_in")(y))
        return x_BTE + _blocks.Dense(config.dim, dtype=dtype, name="ffn_out")(y)


class Encoder(nn.Module):
    """The frozen encoder.

    Attributes:
        config: widths.
        dtype: of the products and the result, float32 or bfloat16; the spectrogram, residual
            stream, norms' statistics and softmax stay float32.
    """

    config: Config
    dtype: Any = jnp.float32

    def __call__(
        self, inputs_B: Array, num_samples_B: Array, layers: tuple[int, ...] | None = None
    ) -> tuple[jax.Array, ...]:
        """Hidden states of a batch of padded waveforms.

        Args:
            inputs_B: stacked outputs of `preprocess`, [B, S].
            num_samples_B: ignored: silence up to the window is part of Whisper's input.
            layers: which hidden states to return (static), None for all: 0 is the input of the
                first layer, num_layers (or -1) the final output, after the last norm.

        Returns:
            [B, S / 320, E] for every index in `layers`.
        """
        del num_samples_B
        return self.encode_log_mel(log_mel(inputs_B, self.config.num_mels), layers)

    @nn.compact
    def encode_log_mel(
        self, log_mel_BFM: jax.Array, layers: tuple[int, ...] | None = None
    ) -> tuple[jax.Array, ...]:
        """The same from a log-mel spectrogram [B, F, num_mels] with 10 ms frames."""
        config, dtype = self.config, self.dtype
        wanted = _blocks.wanted_layers(layers, config.num_layers)
        x_BTE = self._embed(log_mel_BFM.astype(dtype))
        layer = EncoderLayer(config, dtype, name="layers")
        states = _blocks.run_layers(layer, config.num_layers, x_BTE, wanted, dtype)
        if config.num_layers in states:
            final_norm = _blocks.layer_norm(dtype, "final_norm")
            states[config.num_layers] = final_norm(states[config.num_layers])
        return tuple(states[i].astype(dtype) for i in wanted)

    def _embed(self, log_mel_BFM: jax.Array) -> jax.Array:
        """Two convolutions, the second of stride 2, plus fixed positions: [B, F / 2, E]."""
        config, dtype = self.config, self.dtype
        x = nn.Conv(config.dim, (3,), padding=1, dtype=dtype, name="conv1")(log_mel_BFM)
        conv2 = nn.Conv(config.dim, (3,), strides=2, padding=1, dtype=dtype, name="conv2")
        x_BTE = _blocks.gelu(conv2(_blocks.gelu(x)))
        shape = (config.max_frames, config.dim)
        positions = self.param("positions", nn.initializers.normal(0.02), shape)
        return x_BTE.astype(jnp.float32) + positions[: x_BTE.shape[1]]
