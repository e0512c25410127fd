"""EmbedLink, the paper's objective: match projected audio to the transcript's input embeddings.

A fixed number T of audio tokens is matched position by position (mean squared error and cosine) to
the embeddings of the transcript, cast to T. The LLM is absent.

Source: Tiny-Align (arXiv 2411.13766), EmbedLink. How the paper casts, its T and its loss weights are not
known to us; casting is therefore a switch and the defaults are ours. The squared error is divided
by the table's variance, so that it does not depend on the LLM's embedding scale.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.types import Array, Batch, Frozen, PyTree, Reading

NEEDS = ("embeddings",)
FIXED_LENGTH = True  # matches token by token, so the projector must give a fixed number of them
CASTS = ("pad", "stretch")
AT_END = ("stop", "skip")
END_ROW = 0  # row 0 of the table is the end-of-text token
_SCALE = 20.0  # makes logits of cosines, sharp enough to separate close rows


@dataclasses.dataclass(frozen=True)
class Config:
    """Switches of the objective.

    Attributes:
        cast: 'pad' (tokens then end-of-text up to T; longer transcripts are cut) or 'stretch' (the
            token sequence is spread evenly over the T positions).
        mse_weight: weight of the squared error.
        cosine_weight: weight of one minus the cosine.
        pad_weight: weight of a padded position relative to a text position ('pad' only).
        centre: subtract the table's mean row from rows and audio before every cosine, in training and
            in reading.
        at_end: what the reading makes of an end-of-text row ('pad' only): 'stop' there, or 'skip' it.
    """

    cast: str = "pad"
    mse_weight: float = 1.0
    cosine_weight: float = 1.0
    pad_weight: float = 1.0
    centre: bool = False
    at_end: str = "stop"

    def __post_init__(self):
        problems = checks.unlisted(self, cast=CASTS, at_end=AT_END)
        problems += checks.below(self, 0, "mse_weight", "cosine_weight", "pad_weight")
        checks.refuse("embedlink", problems)


def init(config: Config, key: Array, frozen: Frozen) -> PyTree:
    """Nothing of its own to train."""
    return {}


def prepare(config: Config, frozen: Frozen) -> dict[str, Array]:
    """What every step needs of the whole table, so that a step reads its targets' rows only."""
    return {"mean_D": _mean(config, frozen), "variance": jnp.var(jnp.asarray(frozen.table_VD))}


def cast_targets(
    config: Config, target_ids_BL: Array, num_targets_B: Array, num_tokens: int
) -> tuple[Array, Array]:
    """Rows [B, T] that each audio token should match, and which of them are text."""
    position = jnp.arange(num_tokens)[None]
    count = num_targets_B[:, None]
    if config.cast == "stretch":
        index = (position * jnp.maximum(count, 1)) // num_tokens
        is_text = jnp.broadcast_to(count > 0, index.shape)
    else:
        index = position
        is_text = position < count
    safe = jnp.clip(index, 0, target_ids_BL.shape[1] - 1)
    rows = jnp.take_along_axis(target_ids_BL, jnp.broadcast_to(safe, is_text.shape), axis=1)
    return jnp.where(is_text, rows, END_ROW), is_text


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
    """Weighted mean over positions of normalised squared error and cosine distance, float32[B]."""
    rows_BA, is_text_BA = cast_targets(
        config, batch.target_ids_BL, batch.num_targets_B, audio_BAD.shape[1]
    )
    target_BAD = jnp.take(frozen.table_VD, rows_BA, axis=0)
    constants = prepare(config, frozen) if frozen.constants is None else frozen.constants
    mean_D = constants["mean_D"]
    mse_BA = jnp.mean((audio_BAD - target_BAD) ** 2, axis=-1) / constants["variance"]
    cosine_BA = jnp.sum(_normalize(audio_BAD - mean_D) * _normalize(target_BAD - mean_D), axis=-1)
    weight_BA = jnp.where(is_text_BA, 1.0, config.pad_weight) * audio_mask_BA
    total = jnp.maximum(weight_BA.sum(-1), 1e-6)
    per_token = config.mse_weight * mse_BA + config.cosine_weight * (1.0 - cosine_BA)
    counted_BA = audio_mask_BA * batch.weight_B[:, None]
    share_BA = counted_BA / jnp.maximum(counted_BA.sum(), 1e-6)
    metrics: dict[str, Array] = {
        "mse": (mse_BA * share_BA).sum(),
        "cosine": (cosine_BA * share_BA).sum(),
    }
    return (per_token * weight_BA).sum(-1) / total, metrics


def read(
    config: Config,
    params: PyTree,
    audio_BAD: Array,
    audio_mask_BA: Array,
    frozen: Frozen,
) -> Reading:
    """Nearest row (cosine) at each position, up to end-of-text ('pad') or without repeats ('stretch').

    `params['row_bias']` [V], where a user has one, is a prior over words on the scale of logits.
    """
    mean_D = _mean(config, frozen)
    unit_audio, unit_table = _normalize(audio_BAD - mean_D), _normalize(frozen.table_VD - mean_D)
    cosine_BAV = jnp.einsum("bad,vd->bav", unit_audio, unit_table)
    logits_BAV = _SCALE * cosine_BAV + params.get("row_bias", 0.0)
    best_BA = jnp.argmax(logits_BAV, axis=-1)
    if config.cast == "pad" and config.at_end == "stop":
        keep_BA = jnp.cumsum(best_BA == END_ROW, axis=1) == 0
    elif config.cast == "pad":
        keep_BA = best_BA != END_ROW
    else:
        previous = jnp.pad(best_BA[:, :-1], ((0, 0), (1, 0)), constant_values=END_ROW)
        keep_BA = (best_BA != previous) & (best_BA != END_ROW)
    keep_BA = keep_BA & audio_mask_BA
    weights_BAV = jax.nn.softmax(logits_BAV, axis=-1)
    return Reading(
        rows_BA=jnp.where(keep_BA, best_BA, 0).astype(jnp.int32),
        keep_BA=keep_BA,
        soft_BAD=weights_BAV @ frozen.table_VD,
        score_B=jnp.where(keep_BA, cosine_BAV.max(-1), 0.0).sum(-1),
    )


def min_audio_tokens(config: Config, num_targets: int, num_repeats: int) -> int:
    """Any length works: longer transcripts are cut ('pad') or squeezed ('stretch')."""
    return 1


def _normalize(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def _mean(config: Config, frozen: Frozen) -> Array:
    """What `centre` takes off: embedding rows share a large common direction."""
    mean_D = jnp.asarray(frozen.table_VD).mean(0)
    return mean_D if config.centre else jnp.zeros_like(mean_D)
