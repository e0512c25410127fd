"""Next-token prediction through the frozen LLM: the conventional end-to-end baseline.

The LLM reads the prompt with the projected audio in its slot and is held to the transcript; gradients
pass through the whole LLM to the projector. Needs the LLM in training, which EmbedLink does not.

Source: SLAM-ASR (arXiv 2402.08846), frozen LLM without LoRA by default. The prompt is the one of inference.
"""

import dataclasses

import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.objectives import _answer
from tiny_align_jax.types import Array, Batch, Frozen, PyTree

NEEDS = ("llm",)

# What is not the loss is the same for all objectives through the LLM.
init = _answer.init
prepare = _answer.prepare
read = _answer.read
min_audio_tokens = _answer.min_audio_tokens


@dataclasses.dataclass(frozen=True)
class Config(_answer.Config):
    """How the LLM is run in training; keys of `_answer.Config`."""

    def __post_init__(self):
        checks.refuse("next_token", _answer.wrong_llm(self))


def loss(
    config: Config,
    params: PyTree,
    audio_BAD: Array,
    audio_mask_BA: Array,
    batch: Batch,
    frozen: Frozen,
    *,
    llm: _answer.Llm | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of the transcript's tokens and of the end after them, float32[B]."""
    reads = _answer.adapted(params, frozen)
    logits = _answer.answer_logits(
        llm, reads, audio_BAD, audio_mask_BA, batch, jnp.dtype(config.llm_dtype), config.remat
    )
    labels, valid = _answer.answer_labels(frozen, batch)
    metrics = {"answer_accuracy": _answer.accuracy(logits, labels, valid, batch)}
    return _answer.cross_entropy(logits, labels, valid), metrics
