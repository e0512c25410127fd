"""EmbedLink with a learned alignment: CTC against the frozen embedding table.

The projector runs at frame rate; each audio token is compared (cosine times a learned scale) with
the rows of the LLM's own input embeddings, plus one learned blank. The LLM is absent.

Source: our extension of Tiny-Align's EmbedLink (arXiv 2411.13766), with the LLM's embedding matrix as
the output layer of CTC as in Soundwave (arXiv 2502.12900).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import checks, ctc
from tiny_align_jax.types import Array, Batch, Frozen, PyTree, Reading

NEEDS = ("embeddings",)
LOGITS_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Config:
    """Switches of the objective.

    Attributes:
        initial_scale: starting value of the learned factor on cosines.
        table_chunk: table rows whose logits exist at one time.
        logits_dtype: dtype of the products with the table, 'float32', 'bfloat16' or 'float16' (sums are
            float32); see `ctc.cosine_log_normalizer`.
        centre: subtract the table's mean row from rows and audio before the cosine: embedding rows
            share a large common direction that carries no identity.
    """

    initial_scale: float = 20.0
    table_chunk: int = 8192
    logits_dtype: str = "float32"
    centre: bool = False

    def __post_init__(self):
        problems = checks.unlisted(self, logits_dtype=LOGITS_DTYPES)
        problems += checks.not_positive(self, "initial_scale")
        checks.refuse("embedlink_ctc", [*problems, *checks.below(self, 1, "table_chunk")])


def init(config: Config, key: Array, frozen: Frozen) -> PyTree:
    """The learned blank direction [D], its bias and the logarithm of the cosine scale."""
    dim = frozen.table_VD.shape[1]
    return {
        "blank": jax.random.normal(key, (dim,)) / jnp.sqrt(dim),
        "blank_bias": jnp.zeros(()),
        "log_scale": jnp.log(jnp.float32(config.initial_scale)),
    }


def prepare(config: Config, frozen: Frozen) -> dict[str, Any]:
    """What every step needs of the table: its mean row and its rows at unit length, in logits_dtype."""
    mean_D, unit_VD = _mean_and_unit_rows(config, frozen)
    return {"mean_D": mean_D, "unit_VD": ctc.tables(unit_VD, config.logits_dtype)}


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
    """Negative log-likelihood of the transcript per target token, float32[B]."""
    constants = prepare(config, frozen) if frozen.constants is None else frozen.constants
    audio = _normalize(audio_BAD - constants["mean_D"])
    scale = _scale(params)
    blank_BA = _blank_logit(params, audio, scale)
    target_rows_BLD = jnp.take(jnp.asarray(frozen.table_VD), batch.target_ids_BL, axis=0)
    targets_BLD = _normalize(target_rows_BLD - constants["mean_D"])
    label_BAL = scale * jnp.einsum("bad,bld->bal", audio, targets_BLD)
    flat = audio.reshape(-1, audio.shape[-1])
    table_lse: Any = ctc.cosine_log_normalizer(
        flat, constants["unit_VD"], scale, config.table_chunk
    )
    lse_BA = jnp.logaddexp(table_lse.reshape(audio.shape[:2]), blank_BA)
    log_likelihood_B = ctc.ctc_log_likelihood(
        blank_BA - lse_BA,
        label_BAL - lse_BA[..., None],
        jnp.pad(batch.target_ids_BL[:, 1:] == batch.target_ids_BL[:, :-1], ((0, 0), (1, 0))),
        audio_mask_BA.sum(-1).astype(jnp.int32),
        batch.num_targets_B,
    )
    loss_B = -log_likelihood_B / jnp.maximum(batch.num_targets_B, 1)
    # Augmentation may squeeze an utterance until nothing can emit its targets: no gradient, and a
    # loss of 1e30 would drown the others'.
    impossible_B = log_likelihood_B < 0.5 * ctc.LOG_ZERO
    return jnp.where(impossible_B, 0.0, loss_B), {"scale": scale, "impossible": impossible_B.mean()}


def read(
    config: Config,
    params: PyTree,
    audio_BAD: Array,
    audio_mask_BA: Array,
    frozen: Frozen,
) -> Reading:
    """Greedy reading: the best row at each audio token, blanks and repeats dropped."""
    logits_BAV = log_probs(config, params, audio_BAD, frozen)
    blank = frozen.table_VD.shape[0]
    best_BA = jnp.argmax(logits_BAV, axis=-1)
    # Row 0 ends a text: no transcript holds it, so an untrained projector may still hit it.
    keep_BA = ctc.greedy_path(best_BA, blank, audio_mask_BA.sum(-1)) & (best_BA != 0)
    labels_BAV = jax.nn.softmax(logits_BAV[..., :blank], axis=-1)
    top_BA = jnp.max(logits_BAV, axis=-1)
    return Reading(
        rows_BA=jnp.where(keep_BA, best_BA, 0).astype(jnp.int32),
        keep_BA=keep_BA,
        soft_BAD=labels_BAV @ frozen.table_VD,
        score_B=jnp.where(audio_mask_BA, top_BA, 0.0).sum(-1),
    )


def log_probs(config: Config, params: PyTree, audio_BAD: Array, frozen: Frozen) -> Array:
    """Log-probabilities [B, A, V + 1] over the table's rows and, last, the blank.

    `params['row_bias']` [V], where a user has one, is added to the rows' logits: a prior over words.
    """
    if frozen.constants is not None and config.logits_dtype == "float32":
        # While it is trained, and exact: no second table.
        mean_D, table = frozen.constants["mean_D"], frozen.constants["unit_VD"]
    else:
        mean_D, table = _mean_and_unit_rows(config, frozen)
    audio = _normalize(audio_BAD - mean_D)
    scale = _scale(params)
    rows = scale * jnp.einsum("bad,vd->bav", audio, table) + params.get("row_bias", 0.0)
    blank = _blank_logit(params, audio, scale)
    return jax.nn.log_softmax(jnp.concatenate([rows, blank[..., None]], axis=-1))


def min_audio_tokens(config: Config, num_targets: int, num_repeats: int) -> int:
    """Fewest audio tokens that can emit the targets: one each, and a blank between repeats."""
    return max(num_targets + num_repeats, 1)


def _mean_and_unit_rows(config: Config, frozen: Frozen) -> tuple[Array, Array]:
    """What cosines are measured from, and all rows at unit length."""
    mean_D = _mean(config, frozen)
    return mean_D, _normalize(jnp.asarray(frozen.table_VD) - mean_D)


def _mean(config: Config, frozen: Frozen) -> Array:
    mean_D = jnp.asarray(frozen.table_VD).mean(0)
    return mean_D if config.centre else jnp.zeros_like(mean_D)


def _scale(params: PyTree) -> Array:
    return jnp.minimum(jnp.exp(params["log_scale"]), ctc.MAX_SCALE)


def _normalize(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def _blank_logit(params: PyTree, audio: Array, scale: Array) -> Array:
    return scale * (audio @ _normalize(params["blank"])) + params["blank_bias"]
