"""WavLM, base, base-plus and large: HuBERT with a gated relative position bias in attention.

The bias depends on the distance between two frames and is one table for all layers; each layer
gates it with a function of the query's frame.

Source: Chen et al. 2021 (arXiv 2110.13900), section 3.2; tensor names of transformers' WavLM.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tiny_align_jax.encoders import _blocks, _hf, _waveform, _waveform_model
from tiny_align_jax.encoders._waveform import CTC_HEAD_MAP, num_frames, preprocess
from tiny_align_jax.types import Rule

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

HF_MODEL_TYPES = ("wavlm",)


@dataclasses.dataclass(frozen=True)
class Config(_waveform.Config):
    """Widths, read from the checkpoint; the defaults are wavlm-base-plus's.

    Attributes:
        num_buckets: rows of the bias table, half of them for each direction.
        max_distance: frames from which on all distances share the last bucket.
    """

    normalize: bool = False
    num_buckets: int = 320
    max_distance: int = 800


def config_from_hf(hf: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed config.json and preprocessor_config.json.

    Without the latter, only large (layer-norm) checkpoints normalise waveforms: so they were
    trained.

    Raises:
        ConfigError: listing every missing or unhandled attribute.
    """
    optional = {"num_buckets": "num_buckets", "max_distance": "max_bucket_distance"}
    normalize = hf.get("feat_extract_norm") == "layer"
    return _waveform.read_config(
        Config, hf, preprocessor, HF_MODEL_TYPES, optional=optional, normalize=normalize
    )


_ATTENTION = r"(?:wavlm\.)?encoder\.layers\.(?P<layer>\d+)\.attention\."
PARAM_MAP: tuple[Rule, ...] = (
    *_waveform.param_map("wavlm"),
    Rule(r"(?:wavlm\.)?encoder\.layers\.0\.attention\.rel_attn_embed\.weight", "position_bias"),
    Rule(_ATTENTION + "gru_rel_pos_const", "layers/gate/scale", np.ravel),
    *_hf.dense(_ATTENTION + "gru_rel_pos_linear", "layers/gate/projection"),
)


def distance_buckets(config: Config, num_frames: int) -> np.ndarray:
    """Row of the bias table for key minus query = -(T - 1) ... T - 1, int32.

    Exact up to a quarter of the rows, then logarithmic; positive distances use the second half.
    """
    half = config.num_buckets // 2
    exact = half // 2
    distance = np.arange(1 - num_frames, num_frames)
    away = np.abs(distance)
    # float32 throughout: a double would put some distances on the other side of a bucket's edge.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(config.max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + ratio.astype(np.int32), half - 1)
    return (half * (distance > 0) + np.where(away < exact, away, far)).astype(np.int32)


class BiasGate(nn.Module):
    """Gate of the position bias from each head's part of the query's frame."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        """Factors [B, H, T, 1] of the bias."""
        x_BTHK = x_BTE.reshape(*x_BTE.shape[:2], self.num_heads, -1)
        logits = _blocks.Dense(8, dtype=self.dtype, name="projection")(x_BTHK)
        update_reset = jax.nn.sigmoid(jnp.sum(logits.reshape(*logits.shape[:3], 2, 4), axis=-1))
        scale_H = self.param("scale", nn.initializers.ones, (self.num_heads,))
        gate_BTH = update_reset[..., 0] * (update_reset[..., 1] * scale_H - 1.0) + 2.0
        return jnp.swapaxes(gate_BTH, 1, 2)[..., None]


class TransformerLayer(_waveform_model.TransformerLayer):
    """Layer whose attention adds the gated position bias."""

    def attend(self, x_BTE: jax.Array, mask_BT: jax.Array, bias_HTT: jax.Array) -> jax.Array:
        """Self-attention over valid frames."""
        gate_BHT1 = BiasGate(self.config.num_heads, self.dtype, name="gate")(x_BTE)
        attention = _blocks.Attention(self.config.num_heads, self.dtype, name="attention")
        return attention(x_BTE, mask_BT, gate_BHT1 * bias_HTT)


class Encoder(_waveform_model.Encoder):
    """The frozen encoder; call it as wav2vec2's."""

    config: Config
    layer_class: ClassVar[type[nn.Module]] = TransformerLayer

    def shared_inputs(self, x_BTE: jax.Array, mask_BT: jax.Array) -> tuple[Any, ...]:
        """Validity of frames and the position bias [H, T, T] before the gate."""
        config, frames = self.config, x_BTE.shape[1]
        shape = (config.num_buckets, config.num_heads)
        table = self.param("position_bias", nn.initializers.normal(0.02), shape)
        by_distance = table[distance_buckets(config, frames)]
        position = jnp.arange(frames)
        bias_TTH = by_distance[position[None, :] - position[:, None] + frames - 1]
        return mask_BT, jnp.transpose(bias_TTH, (2, 0, 1))
