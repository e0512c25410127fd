"""What the wav2vec2 family shares on the host: widths, config.json, frame arithmetic, mapping rules.

wav2vec2, HuBERT and WavLM read raw waveforms through a stack of strided convolutions; their
checkpoints differ in norms, attention and tensor prefixes.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from tiny_align_jax.encoders import _blocks, _hf
from tiny_align_jax.types import SAMPLE_RATE_HZ, AudioError, ConfigError, Rule

MAX_CONV_LAYERS = 7  # every published checkpoint has 7; the mapping table names each one
NORMALIZE_EPSILON = 1e-7  # of the variance of the waveform, as in transformers' extractor


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths, read from the checkpoint; the defaults are wav2vec2-base's.

    Attributes:
        dim: width of a frame (E).
        num_layers: transformer layers.
        num_heads: attention heads (H).
        ffn_dim: width inside a layer's feed-forward part.
        conv_dims: output channels of the convolutions over the waveform.
        conv_kernels: their widths.
        conv_strides: their strides.
        conv_bias: whether they have a bias.
        conv_norm: 'group' (over time, after the first one only) or 'layer' (over channels, all).
        feature_norm: layer norm before the projection to `dim`.
        position_kernel: width of the positional convolution, frames.
        position_groups: its groups.
        pre_norm: norms before each part of a layer and one at the end ("stable layer norm").
        normalize: waveforms get zero mean and unit variance over the utterance.
    """

    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "group"
    feature_norm: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    pre_norm: bool = False
    normalize: bool = True

    def __post_init__(self):
        problems = []
        lengths = {len(self.conv_dims), len(self.conv_kernels), len(self.conv_strides)}
        if len(lengths) > 1 or not 1 <= max(lengths) <= MAX_CONV_LAYERS:
            problems.append(
                f"conv_dims, conv_kernels and conv_strides need one length from 1 to "
                f"{MAX_CONV_LAYERS}, got {sorted(lengths)}"
            )
        if self.conv_norm not in ("group", "layer"):
            problems.append(f"conv_norm={self.conv_norm!r} is neither 'group' nor 'layer'")
        for name in ("num_heads", "position_groups"):
            if self.dim % getattr(self, name):
                problems.append(f"dim {self.dim} is no multiple of {name} {getattr(self, name)}")
        if problems:
            raise ConfigError("encoder config cannot work: " + "; ".join(problems))


HF_NAMES = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "conv_dims": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "pre_norm": "do_stable_layer_norm",
}
HF_EXPECTED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": _blocks.LAYER_NORM_EPSILON,
    "add_adapter": False,  # a strided convolution after the last layer: another frame rate
    "adapter_attn_dim": None,  # adapters of the multilingual MMS checkpoints
    "conv_pos_batch_norm": False,
}
_HF_IGNORED = (
    r"num_feat_extract_layers|freeze_feat_extract_train|no_mask_.*|replace_prob",
    r"num_codevector.*|codevector_dim|proj_codevector_dim|contrastive_logits_temperature",
    r"num_negatives|diversity_loss_weight|ctc_.*|num_ctc_classes|tdnn_.*|xvector_output_dim",
    r"adapter_kernel_size|adapter_stride|num_adapter_layers|output_hidden_size",
)

C = TypeVar("C", bound=Config)


def read_config(
    config_class: type[C],
    hf: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    model_types: tuple[str, ...],
    needed: Mapping[str, str] = HF_NAMES,
    optional: Mapping[str, str] = MappingProxyType({}),
    expected: Mapping[str, Any] = HF_EXPECTED,
    ignored: tuple[str, ...] = (),
    normalize: bool = True,
) -> C:
    """`config_class` of a parsed config.json and, where the checkpoint has one, preprocessor_config.json.

    Args:
        config_class: the family's Config.
        hf: config.json.
        preprocessor: preprocessor_config.json; None if the checkpoint has none.
        model_types: values of `model_type` that the family reads.
        needed: attributes (ours to theirs) that must be there.
        optional: further attributes that may be absent.
        expected: attributes handled at one value only.
        ignored: regular expressions of attributes that do not matter to this family.
        normalize: what to do without a preprocessor_config.json.

    Raises:
        ConfigError: listing every missing or unhandled attribute.
    """
    _hf.check_attributes(
        hf,
        model_types,
        needed=needed.values(),
        optional=optional.values(),
        expected=expected,
        ignored=(*_HF_IGNORED, *ignored),
        preprocessor=preprocessor,
        preprocessor_expected={"feature_size": 1, "sampling_rate": SAMPLE_RATE_HZ},
    )
    values: dict[str, Any] = {ours: hf[theirs] for ours, theirs in needed.items()}
    values |= {ours: hf[theirs] for ours, theirs in optional.items() if theirs in hf}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return config_class(
        **values, normalize=bool((preprocessor or {}).get("do_normalize", normalize))
    )


def conv_lengths(config: Config, num_samples: Any) -> list[Any]:
    """Valid outputs after each convolution (an int or an array in, the same out), never padded."""
    lengths = []
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
        lengths.append(num_samples)
    return lengths


def num_frames(config: Config, num_samples: int) -> int:
    """Encoder frames of `num_samples` of audio; 0 below one receptive field (400 samples)."""
    return max(0, conv_lengths(config, num_samples)[-1])


def preprocess(config: Config, waveform_S: np.ndarray, window_samples: int) -> np.ndarray:
    """The waveform, normalised over the utterance if the checkpoint wants it, zeros after it.

    Raises:
        AudioError: not one channel of samples that fits the window, or shorter than one frame.
    """
    padded = _blocks.pad_to_window(waveform_S, window_samples)
    size = np.size(waveform_S)
    if num_frames(config, size) < 1:
        raise AudioError(f"waveform of {size} samples is shorter than one encoder frame")
    if config.normalize:
        valid = padded[:size].astype(np.float64)
        padded[:size] = (valid - valid.mean()) / np.sqrt(valid.var() + NORMALIZE_EPSILON)
    return padded


def param_map(prefix: str) -> tuple[Rule, ...]:
    """Mapping rules of a checkpoint whose encoder tensors may start with `prefix`."""
    layer = rf"(?:{prefix}\.)?encoder\.layers\.(?P<layer>\d+)\."
    rules = [*front_end_map(prefix), *_position_conv(prefix)]
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        rules += _hf.dense(layer + rf"attention\.{theirs}", f"layers/attention/{ours}")
    rules += _hf.dense(layer + r"attention\.out_proj", "layers/attention/out")
    rules += _hf.norm(layer + "layer_norm", "layers/attention_norm")
    rules += _hf.dense(layer + r"feed_forward\.intermediate_dense", "layers/ffn_in")
    rules += _hf.dense(layer + r"feed_forward\.output_dense", "layers/ffn_out")
    rules += _hf.norm(layer + "final_layer_norm", "layers/ffn_norm")
    return tuple(rules)


def front_end_map(prefix: str) -> tuple[Rule, ...]:
    """Rules of everything but the layers and the positional convolution.

    Heads (CTC, pre-training, classification) are known and not used here; `CTC_HEAD_MAP` reads
    the first kind.
    """
    root = rf"(?:{prefix}\.)?"
    rules: list[Rule] = []
    for i in range(MAX_CONV_LAYERS):
        source = root + rf"feature_extractor\.conv_layers\.{i}\."
        rules += _hf.conv(source + "conv", f"front_end/conv{i}")
        rules += _hf.norm(source + "layer_norm", f"front_end/norm{i}")
    rules += _hf.norm(root + r"feature_projection\.layer_norm", "feature_norm")
    rules += _hf.dense(root + r"feature_projection\.projection", "feature_projection")
    rules += _hf.norm(root + r"encoder\.layer_norm", "encoder_norm")
    heads = "lm_head|quantizer|project_hid|project_q|projector|classifier"
    unused = rf"{root}masked_spec_embed|(?:{heads})\..*|layer_weights"
    return (*rules, Rule(unused, None))


def _position_conv(prefix: str) -> tuple[Rule, ...]:
    """Weight-normalised kernel under its old (weight_g) and new (parametrizations) names."""
    source = rf"(?:{prefix}\.)?encoder\.pos_conv_embed\.conv\."
    return (
        Rule(
            source + r"(?:weight_g|parametrizations\.weight\.original0)",
            "position_conv/scale",
            np.ravel,
        ),
        Rule(
            source + r"(?:weight_v|parametrizations\.weight\.original1)",
            "position_conv/kernel",
            "conv1d",
        ),
        Rule(source + "bias", "position_conv/bias"),
    )


CTC_HEAD_MAP: tuple[Rule, ...] = (
    Rule(r"lm_head\.weight", "kernel", "linear"),
    Rule(r"lm_head\.bias", "bias"),
    Rule(r"(?!lm_head\.).*", None),
)
