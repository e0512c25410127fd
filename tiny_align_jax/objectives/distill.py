"""Distillation: the LLM that hears should answer as the same LLM that reads.

Teacher: the frozen LLM with the transcript's own embeddings in the prompt's slot. Student: the same LLM
with the projected audio there. Both are held to the transcript as the answer; the student's
distribution at every place is pulled to the teacher's.

Source: behaviour alignment as in BLSP (arXiv 2309.00916) and the temperature of Hinton et al. (arXiv
1503.02531); teacher and student share all weights but the projector's and the adapters'.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.objectives import _answer
from tiny_align_jax.types import Array, Batch, ConfigError, Frozen, PyTree

NEEDS = ("llm",)

# What is not the loss is the same for all objectives through the LLM.
init = _answer.init
prepare = _answer.prepare
read = _answer.read
min_audio_tokens = _answer.min_audio_tokens


@dataclasses.dataclass(frozen=True)
class Config(_answer.Config):
    """Switches of the objective, beside those of `_answer.Config`; the teacher has no adapters.

    Attributes:
        temperature: both distributions are softened by it; the loss is scaled by its square.
        label_weight: weight of the cross-entropy with the transcript, beside the divergence.
    """

    temperature: float = 2.0
    label_weight: float = 0.0

    def __post_init__(self):
        problems = checks.not_positive(self, "temperature")
        problems += checks.below(self, 0, "label_weight")
        checks.refuse("distill", [*problems, *_answer.wrong_llm(self)])


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
    """Mean over the answer's places of KL(teacher || student), and label_weight times the cross-entropy."""
    dtype = jnp.dtype(config.llm_dtype)
    student = _answer.answer_logits(
        llm, _answer.adapted(params, frozen), audio_BAD, audio_mask_BA, batch, dtype, config.remat
    )
    text_BLD, text_mask_BL = _transcript(llm, frozen, batch)
    teacher = jax.lax.stop_gradient(
        _answer.answer_logits(llm, frozen, text_BLD, text_mask_BL, batch, dtype, False)
    )
    labels, valid = _answer.answer_labels(frozen, batch)
    divergence_B = _answer.mean_valid(_divergence(config, teacher, student), valid)
    labels_B = _answer.cross_entropy(student, labels, valid)
    metrics = {
        "divergence": divergence_B.mean(),
        "answer_accuracy": _answer.accuracy(student, labels, valid, batch),
        "teacher_accuracy": _answer.accuracy(teacher, labels, valid, batch),
    }
    return divergence_B + config.label_weight * labels_B, metrics


def _divergence(config: Config, teacher_BLV: Array, student_BLV: Array) -> Array:
    teacher = jax.nn.log_softmax(teacher_BLV / config.temperature)
    student = jax.nn.log_softmax(student_BLV / config.temperature)
    return config.temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def _transcript(llm: _answer.Llm | None, frozen: Frozen, batch: Batch) -> tuple[Array, Array]:
    """Embeddings of the transcript as it stands in the slot: its first word with the leading space."""
    if llm is None or frozen.llm is None:
        raise ConfigError("distill reads through the LLM, but none was loaded")
    module, config = llm
    rows_BL = jnp.asarray(batch.target_ids_BL)
    ids_BL = jnp.take(jnp.asarray(frozen.row_ids_V), rows_BL, axis=0)
    if frozen.slot_ids_V is not None:
        first_B = jnp.take(jnp.asarray(frozen.slot_ids_V), rows_BL[:, 0], axis=0)
        ids_BL = ids_BL.at[:, 0].set(first_B)
    valid_BL = jnp.arange(rows_BL.shape[1])[None] < jnp.asarray(batch.num_targets_B)[:, None]
    return module.embed(config, frozen.llm, ids_BL).astype(jnp.float32), valid_BL
