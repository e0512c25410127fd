"""Shapes that benchmarks run at, as plain data: baselines in other frameworks read the same table.

A size names an LLM (as Hugging Face's config.json would), an encoder's frames and the projectors of the
three kinds of training step. Weights are random: speed does not depend on them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tiny_align_jax import published
from tiny_align_jax.types import ConfigError


def _published(kind: str, name: str) -> dict[str, Any]:
    """Shape of a published model, without what its config says of how it is stored."""
    found = published.find(kind, name) or {}
    return {k: v for k, v in found.items() if k not in ("torch_dtype", "transformers.js_config")}


LLAMA_1B = _published("llms", "Llama-3.2-1B")
SMOLLM2_135M = _published("llms", "SmolLM2-135M")
WHISPER_BASE = _published("encoders", "whisper-base")
WHISPER_TINY = _published("encoders", "whisper-tiny.en")
MINIATURE_LLM = SMOLLM2_135M | {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MINIATURE_ENCODER = WHISPER_BASE | {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
}


@dataclasses.dataclass(frozen=True)
class StepShape:
    """One training step.

    Attributes:
        batch_size: utterances.
        num_frames: encoder frames of every utterance; all are valid.
        num_targets: transcript tokens of every utterance.
        projector: keys of BridgeFormer's Config.
    """

    batch_size: int
    num_frames: int
    num_targets: int
    projector: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """Greedy generation: every prompt has `prompt_tokens` embeddings and `new_tokens` are drawn."""

    prompt_tokens: int = 64
    new_tokens: int = 128
    batch_sizes: tuple[int, ...] = (1, 8, 32)


@dataclasses.dataclass(frozen=True)
class Size:
    """What all cases of one benchmark run at.

    Attributes:
        llm: the LLM's config.json.
        encoder: the speech encoder's config.json.
        window_s: of the encoder; 512 frames, as in the configs.
        encoder_batch: utterances an encoder call.
        embedlink: fixed number of audio tokens T; `next_token` reads the same tokens.
        embedlink_ctc: audio tokens at frame rate.
        prefix_tokens: of the prompt before the audio, for `next_token`.
        suffix_tokens: of the prompt after the audio.
        seen_rows: rows of the table that a training text of a few thousand sentences uses.
        decode: generation.
    """

    llm: Mapping[str, Any]
    encoder: Mapping[str, Any]
    window_s: float
    encoder_batch: int
    embedlink: StepShape
    embedlink_ctc: StepShape
    prefix_tokens: int = 24
    suffix_tokens: int = 8
    seen_rows: int = 3000
    decode: DecodeShape = DecodeShape()

    @property
    def features_dim(self) -> int:
        """Width E of the encoder's frames."""
        return self.encoder["d_model"]

    def with_projector(self, values: Mapping[str, Any]) -> "Size":
        """This size with some keys of its projectors replaced."""
        change = lambda step: dataclasses.replace(step, projector={**step.projector, **values})  # noqa: E731
        return dataclasses.replace(
            self,
            embedlink=change(self.embedlink),
            embedlink_ctc=change(self.embedlink_ctc),
        )

    def tables(self) -> dict[str, int]:
        """Numbers of table rows that the objectives without an LLM run against, by name."""
        full = self.llm["vocab_size"]
        return {f"seen rows ({self.seen_rows})": self.seen_rows, f"full table ({full})": full}


# 12.6 M parameters at width 2048: frames are not stacked, as in the paper's BridgeFormer.
_POOLED = {
    "num_layers": 4,
    "dim": 512,
    "num_heads": 8,
    "mlp_dim": 1184,
    "stack": 1,
    "pooling": "adaptive",
    "num_tokens": 64,
    "dropout": 0.2,
}
# Four frames become one token of 80 ms: 512 frames, 128 audio tokens. configs/so762.py without positions.
_FRAME_RATE = {"num_layers": 4, "dim": 512, "num_heads": 8, "mlp_dim": 2048, "dropout": 0.2}
# configs/so762.py:tiny, the recipe for two cores.
_SMALL = {"num_layers": 3, "dim": 256, "num_heads": 4, "mlp_dim": 1024, "dropout": 0.2}
_CURVES = {"num_layers": 2, "dim": 128, "num_heads": 2, "mlp_dim": 512, "dropout": 0.2}
_MINIATURE = {"num_layers": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32, "dropout": 0.2}

SIZES = {
    "llama1b": Size(
        llm=LLAMA_1B,
        encoder=WHISPER_BASE,
        window_s=10.24,
        encoder_batch=64,
        embedlink=StepShape(8, 256, 16, _POOLED),
        embedlink_ctc=StepShape(32, 512, 16, _FRAME_RATE),
    ),
    "smollm2": Size(
        llm=SMOLLM2_135M,
        encoder=WHISPER_BASE,
        window_s=10.24,
        encoder_batch=64,
        embedlink=StepShape(8, 256, 16, _POOLED),
        embedlink_ctc=StepShape(32, 512, 16, _FRAME_RATE),
    ),
    "smollm2_tiny_en": Size(
        llm=SMOLLM2_135M,
        encoder=WHISPER_TINY,
        window_s=10.24,
        encoder_batch=8,
        embedlink=StepShape(
            8, 256, 16, _SMALL | {"stack": 1, "pooling": "adaptive", "num_tokens": 64}
        ),
        embedlink_ctc=StepShape(8, 512, 16, _SMALL),
        decode=DecodeShape(new_tokens=32),
    ),
    # For curves: small enough that a CPU draws all of them in minutes.
    "small": Size(
        llm=SMOLLM2_135M
        | {
            "vocab_size": 8192,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        encoder=WHISPER_TINY,
        window_s=10.24,
        encoder_batch=4,
        embedlink=StepShape(
            4, 128, 8, _CURVES | {"stack": 1, "pooling": "adaptive", "num_tokens": 32}
        ),
        embedlink_ctc=StepShape(4, 256, 8, _CURVES),
        seen_rows=1000,
        decode=DecodeShape(new_tokens=128),
    ),
    "tiny": Size(
        llm=MINIATURE_LLM,
        encoder=MINIATURE_ENCODER,
        window_s=1.0,
        encoder_batch=2,
        embedlink=StepShape(
            2, 32, 4, _MINIATURE | {"stack": 1, "pooling": "adaptive", "num_tokens": 8}
        ),
        embedlink_ctc=StepShape(2, 64, 4, _MINIATURE),
        prefix_tokens=4,
        suffix_tokens=2,
        seen_rows=64,
        decode=DecodeShape(8, 6, (1, 2)),
    ),
}


def find(name: str) -> Size:
    """The size of that name.

    Raises:
        ConfigError: none has it.
    """
    if name not in SIZES:
        raise ConfigError(f"unknown size {name!r}; there are: {', '.join(SIZES)}")
    return SIZES[name]
