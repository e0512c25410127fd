"""Next-token prediction through the frozen LLM: the conventional end-to-end baseline.

The LLM reads the prompt with the projected audio in its slot and is held to the transcript; gradients
pass through the whole LLM to the projector. Needs the LLM in training, which EmbedLink does not.

Source: SLAM-ASR (arXiv 2402.08846), frozen LLM without LoRA by default. The prompt is the one of inference.
"""

import dataclasses

import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.objectives import _answer
from tiny_align_jax.types import Array, Batch, Frozen, PyTree, Reading

NEEDS = ("llm",)


@dataclasses.dataclass(frozen=True)
class Config:
    """How the LLM is run in training.

    Attributes:
        llm_dtype: its compute dtype, 'bfloat16' or 'float32'.
        remat: recompute each layer's activations in the backward pass: memory of one layer instead
            of all, for about a third more time.
        lora_rank: rank of adapters that train in the LLM's attention, 0 for none; for a second stage,
            when the projector can already be read (see `lora`).
    """

    llm_dtype: str = "bfloat16"
    remat: bool = True
    lora_rank: int = 0

    def __post_init__(self):
        problems = _answer.check_rank("lora_rank", self.lora_rank)
        problems += checks.unlisted(self, llm_dtype=("float32", "bfloat16"))
        checks.refuse("next_token", problems)


def init(config: Config, key: Array, frozen: Frozen) -> PyTree:
    """Adapters of the LLM's attention, if asked for."""
    return _answer.init_adapters(config.lora_rank, key, frozen)


def prepare(config: Config, frozen: Frozen, llm: _answer.Llm | None = None) -> dict[str, PyTree]:
    """What the LLM makes of the prompt before the audio, see `_answer.prepare`."""
    return _answer.prepare(llm, frozen, jnp.dtype(config.llm_dtype))


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


def read(
    config: Config,
    params: PyTree,
    audio_BAD: Array,
    audio_mask_BA: Array,
    frozen: Frozen,
) -> Reading:
    """Nearest rows, see `_answer.nearest_rows`; the result is the LLM's answer to the raw tokens."""
    return _answer.nearest_rows(audio_BAD, audio_mask_BA, frozen)


def min_audio_tokens(config: Config, num_targets: int, num_repeats: int) -> int:
    """The LLM reads any number of tokens."""
    return 1
