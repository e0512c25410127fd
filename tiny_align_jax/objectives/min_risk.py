"""Minimum expected word errors: readings are drawn from the CTC distribution, and fewer errors rewarded.

A short second stage behind `embedlink_ctc`, whose parameters it shares by name (`train.init_from`). CTC
raises the likelihood of the transcript, however many words the best wrong reading gets wrong; this
objective lowers the mean number of errors of what is really read. Readings are drawn token by token
from the projector's own distribution, their edit distance to the transcript is counted on the device, and
the likelihood of each (over all its alignments) is moved by how much it is better than the others of
its utterance. Without CTC beside it, which keeps the transcript likely, it drifts. The LLM is absent.

Errors are counted in rows of the table, which are words for most of a 'seen' vocabulary.

Source: minimum word error rate training with sampled hypotheses (Prabhavalkar et al., arXiv 1712.01818),
policy gradient (Williams 1992) with the mean of the other readings as baseline (Kool et al. 2019);
the likelihood of a reading in place of that of the drawn alignment has the same mean and less variance.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tiny_align_jax import checks, ctc
from tiny_align_jax.objectives import _edits, embedlink_ctc
from tiny_align_jax.types import Array, Batch, Frozen, PyTree

NEEDS = ("embeddings",)

# Parameters, readings and lengths are those of the objective that comes before it.
init = embedlink_ctc.init
read = embedlink_ctc.read
log_probs = embedlink_ctc.log_probs
min_audio_tokens = embedlink_ctc.min_audio_tokens


@dataclasses.dataclass(frozen=True)
class Config(embedlink_ctc.Config):
    """Switches of the objective; keys of `embedlink_ctc` as in the stage before.

    Attributes:
        num_readings: readings drawn for each utterance, 2 or more.
        ctc_weight: weight of the CTC loss beside the expected errors per target.
    """

    num_readings: int = 4
    ctc_weight: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        problems = []
        if self.num_readings < 2:
            problems.append(
                f"num_readings={self.num_readings}; expected 2 or more, to compare them"
            )
        checks.refuse("min_risk", [*problems, *checks.below(self, 0, "ctc_weight")])


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
    """Mean errors per target of the drawn readings, and `ctc_weight` times the CTC loss, float32[B].

    The value is the errors themselves; the gradient is that of their expectation.
    """
    logs_BAV = embedlink_ctc.log_probs(config, params, audio_BAD, frozen)
    rows_BKA, count_BK = jax.lax.stop_gradient(_draw(config, audio_BAD, logs_BAV, audio_mask_BA))
    errors_BK = _errors(rows_BKA, count_BK, batch)
    likelihood_BK, transcript_B = _log_likelihoods(
        logs_BAV, audio_mask_BA, rows_BKA, count_BK, batch
    )
    others = (errors_BK.sum(1, keepdims=True) - errors_BK) / (config.num_readings - 1)
    gain_B = ((errors_BK - others) * likelihood_BK).mean(1)
    risk_B = errors_BK.mean(1) + gain_B - jax.lax.stop_gradient(gain_B)
    impossible_B = transcript_B < 0.5 * ctc.LOG_ZERO  # as in `embedlink_ctc`
    ctc_B = jnp.where(impossible_B, 0.0, -transcript_B) / jnp.maximum(batch.num_targets_B, 1)
    metrics = {
        "ctc": ctc_B.mean(),
        "risk": errors_BK.mean(),
        "least_risk": errors_BK.min(1).mean(),
        "impossible": impossible_B.mean(),
    }
    return risk_B + config.ctc_weight * ctc_B, metrics


def _draw(config: Config, audio_BAD: Array, logs_BAV: Array, mask_BA: Array) -> tuple[Array, Array]:
    """Readings [B, K, A] in table rows, packed to the front, and their lengths [B, K].

    A row's draws depend on its own tokens alone, so that company and padding change nothing; the bits of
    its first token, which dropout changes at every step, stand for a random key.
    """
    blank, places = logs_BAV.shape[-1] - 1, jnp.arange(logs_BAV.shape[1])
    bits_B = jax.lax.bitcast_convert_type(audio_BAD[:, 0, 0].astype(jnp.float32), jnp.uint32)

    def draw_row(bits, logs_AV, mask_A):
        def at_place(place, logs_V):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), bits), place)
            return jax.random.categorical(key, logs_V, shape=(config.num_readings,))

        best_KA = jax.vmap(at_place)(places, logs_AV).T
        keep_KA = ctc.greedy_path(best_KA, blank, jnp.full(config.num_readings, mask_A.sum()))
        # Packed by a stable sort: what is kept moves to the front in its order.
        order_KA = jnp.argsort(~keep_KA, axis=1, stable=True)
        return jnp.take_along_axis(best_KA, order_KA, axis=1), keep_KA.sum(1)

    return jax.vmap(draw_row)(bits_B, logs_BAV, jnp.asarray(mask_BA))


def _errors(rows_BKA: Array, count_BK: Array, batch: Batch) -> Array:
    """Edit distance of each reading per target of its utterance, float32[B, K]."""
    batch_size, readings, _ = rows_BKA.shape
    targets_B = jnp.asarray(batch.num_targets_B)
    edits = _edits.edit_distance(
        rows_BKA.reshape(batch_size * readings, -1),
        count_BK.reshape(-1),
        jnp.repeat(jnp.asarray(batch.target_ids_BL), readings, axis=0),
        jnp.repeat(targets_B, readings),
    )
    return edits.reshape(batch_size, readings) / jnp.maximum(targets_B, 1)[:, None]


def _log_likelihoods(
    logs_BAV: Array, mask_BA: Array, rows_BKA: Array, count_BK: Array, batch: Batch
) -> tuple[Array, Array]:
    """Log-likelihood of each reading [B, K] and of the transcript [B], over all their alignments.

    The transcript rides along as one more reading: one recursion over time for all of them.
    """
    targets_BL = jnp.asarray(batch.target_ids_BL)
    length = max(rows_BKA.shape[2], targets_BL.shape[1])
    rows_BKS = jnp.pad(rows_BKA, ((0, 0), (0, 0), (0, length - rows_BKA.shape[2])))
    targets_BS = jnp.pad(targets_BL, ((0, 0), (0, length - targets_BL.shape[1])))
    rows_BKS = jnp.concatenate([rows_BKS, targets_BS[:, None]], axis=1)
    count_BK = jnp.concatenate([count_BK, jnp.asarray(batch.num_targets_B)[:, None]], axis=1)
    rows_BKS = jnp.where(jnp.arange(length) < count_BK[..., None], rows_BKS, 0)
    label_BAKS = jax.vmap(lambda logs, rows: jnp.take(logs, rows, axis=1))(logs_BAV, rows_BKS)
    shape = label_BAKS.shape[:1] + rows_BKS.shape[1:2]
    blank_BKA = jnp.broadcast_to(logs_BAV[:, None, :, -1], (*shape, logs_BAV.shape[1]))
    repeat_BKS = jnp.pad(rows_BKS[..., 1:] == rows_BKS[..., :-1], ((0, 0), (0, 0), (1, 0)))
    tokens_BK = jnp.broadcast_to(jnp.maximum(mask_BA.sum(-1), 1)[:, None], shape)
    parts = (
        blank_BKA,
        jnp.moveaxis(label_BAKS, 1, 2),
        repeat_BKS,
        tokens_BK.astype(jnp.int32),
        count_BK,
    )
    flat = [part.reshape(-1, *part.shape[2:]) for part in parts]
    likelihood_BK = ctc.ctc_log_likelihood(*flat).reshape(shape)
    return likelihood_BK[:, :-1], likelihood_BK[:, -1]
