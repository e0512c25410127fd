"""EmbedLink as a choice: each audio token must pick its row among the rows of the table.

The paper's objective pulls towards the right row only; a softmax over all rows (or a sample of them)
also pushes away from the wrong ones. Casting to a fixed number of tokens is as in `embedlink`. The LLM is absent.

Source: InfoNCE (arXiv 1807.03748) on cosines with a learned scale, as in CLIP (arXiv 2103.00020), and
the correction of a sampled softmax by the sampling rate (Jean et al., arXiv 1412.2007).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import checks, ctc
from tiny_align_jax.objectives import embedlink
from tiny_align_jax.types import Array, Batch, Frozen, PyTree, Reading

NEEDS = ("embeddings",)
FIXED_LENGTH = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Switches of the objective.

    Attributes:
        cast: 'pad' or 'stretch', as in `embedlink`.
        pad_weight: weight of a padded position relative to a text position ('pad' only).
        initial_scale: starting value of the learned factor on cosines.
        num_negatives: wrong rows drawn for each batch; 0 for all rows.
        table_chunk: rows whose logits exist at one time.
    """

    cast: str = "pad"
    pad_weight: float = 1.0
    initial_scale: float = 20.0
    num_negatives: int = 0
    table_chunk: int = 8192

    def __post_init__(self):
        problems = checks.unlisted(self, cast=embedlink.CASTS)
        problems += checks.below(self, 0, "pad_weight", "num_negatives")
        problems += checks.not_positive(self, "initial_scale")
        problems += checks.below(self, 1, "table_chunk")
        checks.refuse("embedlink_contrastive", problems)


def init(config: Config, key: Array, frozen: Frozen) -> PyTree:
    """The logarithm of the cosine scale."""
    return {"log_scale": jnp.log(jnp.float32(config.initial_scale))}


def loss(
    config: Config,
    params: PyTree,
    audio_BAD: Array,
    audio_mask_BA: Array,
    batch: Batch,
    frozen: Frozen,
    *,
    llm=None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean over positions of the cross-entropy of the right row, float32[B]."""
    rows_BA, is_text_BA = embedlink.cast_targets(
        _cast(config), batch.target_ids_BL, batch.num_targets_B, audio_BAD.shape[1]
    )
    scale = _scale(params)
    audio, table = _unit(audio_BAD), _unit(jnp.asarray(frozen.table_VD))
    right_BA = scale * jnp.sum(audio * jnp.take(table, rows_BA, axis=0), axis=-1)
    if config.num_negatives:
        lse_BA = _sampled_lse(config, audio, table, rows_BA, right_BA, scale, batch.index_B)
    else:
        flat = audio.reshape(-1, audio.shape[-1])
        lse: Any = ctc.cosine_log_normalizer(flat, table, scale, config.table_chunk)
        lse_BA = lse.reshape(rows_BA.shape)
    weight_BA = jnp.where(is_text_BA, 1.0, config.pad_weight) * audio_mask_BA
    total = jnp.maximum(weight_BA.sum(-1), 1e-6)
    return ((lse_BA - right_BA) * weight_BA).sum(-1) / total, {"scale": scale}


def read(
    config: Config,
    params: PyTree,
    audio_BAD: Array,
    audio_mask_BA: Array,
    frozen: Frozen,
) -> Reading:
    """Nearest row (cosine) at each position as in `embedlink`, soft rows at the learned scale."""
    nearest = embedlink.read(_cast(config), {}, audio_BAD, audio_mask_BA, frozen)
    cosine_BAV = jnp.einsum("bad,vd->bav", _unit(audio_BAD), _unit(jnp.asarray(frozen.table_VD)))
    log_probs_BAV = jax.nn.log_softmax(_scale(params) * cosine_BAV)
    return dataclasses.replace(
        nearest,
        soft_BAD=jnp.exp(log_probs_BAV) @ frozen.table_VD,
        score_B=jnp.where(nearest.keep_BA, log_probs_BAV.max(-1), 0.0).sum(-1),
    )


def min_audio_tokens(config: Config, num_targets: int, num_repeats: int) -> int:
    """Any length works: longer transcripts are cut ('pad') or squeezed ('stretch')."""
    return 1


def _cast(config: Config) -> embedlink.Config:
    return embedlink.Config(cast=config.cast, pad_weight=config.pad_weight)


def _scale(params: PyTree) -> Array:
    return jnp.minimum(jnp.exp(params["log_scale"]), ctc.MAX_SCALE)


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def _sampled_lse(
    config: Config,
    audio: Array,
    table: Array,
    rows_BA: Array,
    right_BA: Array,
    scale: Array,
    index_B: Array,
) -> Array:
    """log-sum-exp over the right row and drawn wrong ones, which stand for all V - 1 of them."""
    num_rows = table.shape[0]
    # A pure function of which utterances stand together, which changes every epoch.
    key = jax.random.fold_in(jax.random.key(0), jnp.sum(index_B * (jnp.arange(len(index_B)) + 1)))
    drawn_C = jax.random.randint(key, (config.num_negatives,), 0, num_rows)
    wrong_BAC = scale * jnp.einsum("bad,cd->bac", audio, jnp.take(table, drawn_C, axis=0))
    is_right_BAC = drawn_C == rows_BA[..., None]
    num_wrong_BA = jnp.maximum((~is_right_BAC).sum(-1), 1)
    wrong_BA = jax.nn.logsumexp(jnp.where(is_right_BAC, ctc.LOG_ZERO, wrong_BAC), axis=-1)
    return jnp.logaddexp(right_BA, wrong_BA + jnp.log((num_rows - 1) / num_wrong_BA))
