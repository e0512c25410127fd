"""Tiny random `transformers` encoders and how to run ours beside them."""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from tiny_align_jax import registry, testing
from tiny_align_jax.weights import convert

# transformers class with a head on top, so that its tensor names carry the longer prefix.
CLASSES = {
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration"),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForCTC"),
    "hubert": ("HubertConfig", "HubertForCTC"),
    "wavlm": ("WavLMConfig", "WavLMForCTC"),
    "wav2vec2_conformer": ("Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC"),
}
TINY_HEADS = {
    "vocab_size": 40,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WHISPER_CASES = tuple(k for k in testing.ENCODER_CONFIGS if k.startswith("whisper"))
WAVEFORM_CASES = tuple(k for k in testing.ENCODER_CONFIGS if not k.startswith("whisper"))


class TorchSource:
    """Tensors of a torch model as the weights engine reads a checkpoint."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self._tensors = tensors

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype:
        return self.read(name).dtype

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name].numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A torch model and ours with the same weights."""

    module: ModuleType
    config: Any
    params: Any
    model: Any

    def hidden_states(
        self, waveforms: list[np.ndarray], window: int, dtype: Any = jnp.float32
    ) -> list[np.ndarray]:
        """All hidden states [B, T, E] of a padded batch, float32."""
        inputs = np.stack([self.module.preprocess(self.config, w, window) for w in waveforms])
        sizes = np.array([w.size for w in waveforms])
        outputs = _apply(self.module.Encoder(self.config, dtype), self.params, inputs, sizes)
        return [np.asarray(h, np.float32) for h in outputs]

    def reference(self, inputs: torch.Tensor, **kwargs: Any) -> list[np.ndarray]:
        """All hidden states of the torch encoder; the last one is its final output.

        transformers 5 records the last layer's output, which in pre-norm wav2vec2 models is not
        yet normalised; the final output is what the next module reads.
        """
        model = self.model.base_model
        model = model.encoder if hasattr(model, "decoder") else model
        with torch.no_grad():
            out = model(inputs, output_hidden_states=True, **kwargs)
        return [h.numpy() for h in (*out.hidden_states[:-1], out.last_hidden_state)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(encoder: Any, params: Any, inputs: np.ndarray, sizes: np.ndarray) -> Any:
    """One compilation for each encoder, dtype and shape: modules are hashable."""
    return encoder.apply({"params": params}, inputs, sizes)


@functools.cache
def build(name: str) -> Case:
    """The case of one entry of `testing.ENCODER_CONFIGS`, random weights."""
    family = name.split("/")[0]
    config_class, model_class = CLASSES[family]
    hf_config = getattr(transformers, config_class)(
        **(TINY_HEADS if family == "whisper" else {"vocab_size": 40}),
        **{k: v for k, v in testing.ENCODER_CONFIGS[name].items() if k != "model_type"},
    )
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(hf_config).eval()
    randomize(model)
    module = registry.resolve("encoders", family)
    config = module.config_from_hf(hf_config.to_dict())
    return Case(module, config, load(module, config, model.state_dict()), model)


def randomize(model: torch.nn.Module) -> None:
    """Weights that let the signal through, and no default biases or scales, which hide mix-ups."""
    for name, parameter in model.named_parameters():
        is_scale = (parameter.ndim == 1 and name.endswith("weight")) or "original0" in name
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        parameter.data.normal_(0, 2.0 / fan_in**0.5 if fan_in > 1 else 0.15)
        parameter.data += 1.0 if is_scale else 0.0
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)


def load(module: ModuleType, config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Our parameters from torch tensors, through the weights engine."""
    return convert.convert(
        TorchSource(tensors), module.PARAM_MAP, target_shapes(module, config), jnp.float32
    )


def target_shapes(module: ModuleType, config: Any) -> Any:
    """Shapes of the parameter tree, without making it."""
    inputs = jax.ShapeDtypeStruct((1, 16_000), jnp.float32)
    sizes = jax.ShapeDtypeStruct((1,), jnp.int32)
    variables = jax.eval_shape(module.Encoder(config).init, jax.random.key(0), inputs, sizes)
    return variables["params"]


def noise(*sizes: int) -> list[np.ndarray]:
    """Seeded noise of the given numbers of samples, with a slow swell so that frames differ."""
    rng = np.random.default_rng(7)
    return [
        (rng.standard_normal(n) * (0.2 + np.abs(np.sin(np.arange(n) / 900)))).astype(np.float32)
        for n in sizes
    ]
