"""Connectionist temporal classification over the rows of a frozen embedding table.

The output layer is the table itself: nothing of it is trained and nothing of it is copied. The loss
needs the log-probability of the targets and of the blank at each audio token, so the logits of the
whole table are only ever summed (`cosine_log_normalizer`), never gathered from.

The recursion runs once over time for both directions: the backward variables are the forward
variables of the reversed problem, so they ride along as further batch rows. The gradient is the
analytic one (emission posteriors), which halves the sequential steps of differentiating through the
scan.

Source: Graves et al., "Connectionist Temporal Classification", ICML 2006, sections 4.1 and 4.2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.types import Array

# Stands for log(0). Finite, so that differences of two impossible scores stay finite.
LOG_ZERO = -1e30
# Time steps per loop iteration: a GPU loop iteration costs as much as its launch, so several are fused.
UNROLL = 8


@jax.custom_vjp
def ctc_log_likelihood(
    blank_BA: Array, label_BAL: Array, repeat_BL: Array, num_tokens_B: Array, num_targets_B: Array
) -> Array:
    """Log-likelihood of the targets, summed over all alignments.

    Args:
        blank_BA: log-probability of the blank at each audio token.
        label_BAL: log-probability of target l at each audio token.
        repeat_BL: True where target l equals target l - 1 (a blank must stand between them).
        num_tokens_B: valid audio tokens a row, at least 1.
        num_targets_B: valid targets a row, may be 0.

    Returns:
        float32[B]; about LOG_ZERO where no alignment exists (see `is_feasible`).
    """
    return _forward(blank_BA, label_BAL, repeat_BL, num_tokens_B, num_targets_B)[0]


def is_feasible(num_tokens: int, targets: np.ndarray) -> bool:
    """Whether `num_tokens` audio tokens can emit `targets` (repeats need a blank between them)."""
    targets = np.asarray(targets)
    return num_tokens >= len(targets) + int(np.sum(targets[1:] == targets[:-1])) and num_tokens > 0


# Largest factor on cosines that `cosine_log_normalizer` takes; CLIP (arXiv 2103.00020) stops at it, too.
MAX_SCALE = 100.0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cosine_log_normalizer(
    x_ND: Array, table: Array | tuple[Array, Array], scale: Array, chunk: int
) -> Array:
    """log(sum(exp(scale * x . row))) over the rows of a frozen table; x and rows are of unit length.

    The gradient needs nothing but the softmax-weighted mean row, which is summed up beside the
    normaliser: one pass over the table, two products, and no [N, V] array in either direction.
    Recomputing the logits for the gradient would take three. No gradient reaches the table.

    Args:
        x_ND: queries.
        table: [V, D]; its dtype is that of the products, which are summed in float32. In float16 (see `tables`)
            the cosines are rounded to it, too, by at most 0.00025: half the bytes, and a result four
            times as close as with bfloat16, whose rows alone put a cosine of 1 off by 0.002.
        scale: factor on cosines, at most MAX_SCALE.
        chunk: rows a chunk; their logits exist at one time.

    Returns:
        float32[N].
    """
    return _sum_exponentials(x_ND, table, scale, chunk)[0]


def tables(unit_VD: Array, dtype: str) -> Array | tuple[Array, Array]:
    """What `cosine_log_normalizer` reads in `dtype`: in float16 with a copy in bfloat16, whose range the
    exponentials need."""
    table = unit_VD.astype(dtype)
    return (table, unit_VD.astype(jnp.bfloat16)) if dtype == "float16" else table


def _sum_exponentials(x_ND, table, scale, chunk):
    """(log-normaliser [N], softmax-weighted mean row [N, D])."""
    total = jnp.zeros((x_ND.shape[0],), jnp.float32)
    rows_sum = jnp.zeros(x_ND.shape, jnp.float32)
    # Half the largest exponent is taken off every logit, no running maximum: with scale <= 100 and cosines
    # in [-1, 1] nothing overflows, and a row whose best cosine is above -0.37 does not vanish either.
    shift = 0.5 * scale
    table_VD, averaged_VD = table if isinstance(table, tuple) else (table, table)
    queries_ND = x_ND.astype(table_VD.dtype)
    cosine_dtype = jnp.float16 if table_VD.dtype == jnp.float16 else jnp.float32
    for start in range(0, table_VD.shape[0], chunk):
        rows = slice(start, start + chunk)
        cosines = jax.lax.dot_general(
            queries_ND, table_VD[rows], (((1,), (1,)), ((), ())),
            preferred_element_type=cosine_dtype,
        )  # fmt: skip
        weights = jnp.exp(scale * cosines.astype(jnp.float32) - shift)
        total += weights.sum(-1)
        rows_sum += jax.lax.dot_general(
            weights.astype(averaged_VD.dtype), averaged_VD[rows], (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
    return jnp.log(total) + shift, rows_sum / total[:, None]


def _normalizer_fwd(x_ND, table, scale, chunk):
    result_N, mean_ND = _sum_exponentials(x_ND, table, scale, chunk)
    return result_N, (x_ND, mean_ND, scale, table)


def _normalizer_bwd(chunk, residuals, grad_N):
    x_ND, mean_ND, scale, table = residuals
    grad_x = (scale * grad_N[:, None] * mean_ND).astype(x_ND.dtype)
    grad_scale = jnp.sum(grad_N * jnp.sum(x_ND.astype(jnp.float32) * mean_ND, axis=-1))
    nothing = jax.tree.map(jnp.zeros_like, table)
    return grad_x, nothing, grad_scale.astype(jnp.result_type(scale))


cosine_log_normalizer.defvjp(_normalizer_fwd, _normalizer_bwd)


def greedy_path(best_BA: Array, blank: int, num_tokens_B: Array) -> Array:
    """Mask of the audio tokens that carry a new label: not blank, not a repeat, not padding.

    Args:
        best_BA: most probable symbol at each audio token.
        blank: symbol that stands for the blank.
        num_tokens_B: valid audio tokens a row.
    """
    previous = jnp.pad(best_BA[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    valid = jnp.arange(best_BA.shape[1])[None] < num_tokens_B[:, None]
    return (best_BA != blank) & (best_BA != previous) & valid


def _emissions(blank_BA: Array, label_BAL: Array) -> Array:
    """Interleaves blanks and labels: [B, A, S] with S = 2 L + 1, blanks at even positions."""
    batch, tokens, labels = label_BAL.shape
    blanks = jnp.broadcast_to(blank_BA[..., None], (batch, tokens, labels))
    pairs = jnp.stack([blanks, label_BAL], axis=-1).reshape(batch, tokens, 2 * labels)
    return jnp.concatenate([pairs, blank_BA[..., None]], axis=-1).astype(jnp.float32)


def _skips(repeat_BL: Array) -> Array:
    """bool[B, S]: True where a state may be entered from two states before (a new label)."""
    may_BL = ~jnp.asarray(repeat_BL, bool)
    may_BL = may_BL.at[:, 0].set(False)
    pairs = jnp.stack([jnp.zeros_like(may_BL), may_BL], axis=-1).reshape(may_BL.shape[0], -1)
    return jnp.pad(pairs, ((0, 0), (0, 1)))


def _alphas(emit_BAS: Array, skip_BS: Array, num_tokens_B: Array) -> Array:
    """Forward variables [A, B, S]; frozen after a row's last token."""
    skip_cost = jnp.where(skip_BS, 0.0, LOG_ZERO)

    def step(alpha, inputs):
        emit_BS, index = inputs
        one = jnp.pad(alpha[:, :-1], ((0, 0), (1, 0)), constant_values=LOG_ZERO)
        two = jnp.pad(alpha[:, :-2], ((0, 0), (2, 0)), constant_values=LOG_ZERO) + skip_cost
        top = jnp.maximum(jnp.maximum(alpha, one), two)
        total = top + jnp.log(jnp.exp(alpha - top) + jnp.exp(one - top) + jnp.exp(two - top))
        new = jnp.maximum(total + emit_BS, LOG_ZERO)
        new = jnp.where((index < num_tokens_B)[:, None], new, alpha)
        return new, new

    num_tokens, states = emit_BAS.shape[1:]
    first = jnp.where(jnp.arange(states)[None] < 2, emit_BAS[:, 0], LOG_ZERO)
    rest = (jnp.swapaxes(emit_BAS[:, 1:], 0, 1), jnp.arange(1, num_tokens))
    _, alphas = jax.lax.scan(step, first, rest, unroll=min(UNROLL, max(num_tokens - 1, 1)))
    return jnp.concatenate([first[None], alphas])


def _flip(array: Array, length_B: Array, axis: int) -> Array:
    """Reverses the first `length_B` entries of `axis` of each row; the rest are clipped copies."""
    index = jnp.clip(length_B[:, None] - 1 - jnp.arange(array.shape[axis])[None], 0)
    shape = [1] * array.ndim
    shape[0], shape[axis] = array.shape[0], array.shape[axis]
    return jnp.take_along_axis(array, index.reshape(shape), axis=axis)


def _forward(blank_BA, label_BAL, repeat_BL, num_tokens_B, num_targets_B):
    emit = _emissions(blank_BA, label_BAL)
    states_B = 2 * num_targets_B + 1
    state_valid = jnp.arange(emit.shape[2])[None, None] < states_B[:, None, None]
    emit = jnp.where(state_valid, emit, LOG_ZERO)
    skip = _skips(repeat_BL)
    # Reversed problem: state s becomes 2 l - s, so a skip into s backwards is a skip out of s forwards.
    skip_out = jnp.pad(skip[:, 2:], ((0, 0), (0, 2)))
    emit_reversed = _flip(_flip(emit, num_tokens_B, 1), states_B, 2)
    emit_reversed = jnp.where(state_valid, emit_reversed, LOG_ZERO)
    both = _alphas(
        jnp.concatenate([emit, emit_reversed]),
        jnp.concatenate([skip, _flip(skip_out, states_B, 1)]),
        jnp.concatenate([num_tokens_B, num_tokens_B]),
    )
    batch = emit.shape[0]
    alpha_BAS = jnp.swapaxes(both[:, :batch], 0, 1)
    beta_BAS = _flip(_flip(jnp.swapaxes(both[:, batch:], 0, 1), num_tokens_B, 1), states_B, 2)
    last = alpha_BAS[:, -1]  # frozen rows keep their last valid value
    final = jnp.take_along_axis(last, (states_B - 1)[:, None], axis=1)[:, 0]
    before = jnp.take_along_axis(last, jnp.maximum(states_B - 2, 0)[:, None], axis=1)[:, 0]
    before = jnp.where(num_targets_B > 0, before, LOG_ZERO)
    return jnp.logaddexp(final, before), (emit, alpha_BAS, beta_BAS, state_valid)


def _ctc_fwd(blank_BA, label_BAL, repeat_BL, num_tokens_B, num_targets_B):
    log_z, (emit, alpha, beta, state_valid) = _forward(
        blank_BA, label_BAL, repeat_BL, num_tokens_B, num_targets_B
    )
    token_valid = jnp.arange(emit.shape[1])[None, :, None] < num_tokens_B[:, None, None]
    posterior = jnp.exp(jnp.minimum(alpha + beta - emit - log_z[:, None, None], 0.0))
    # Without any alignment log_z is LOG_ZERO and the ratio means nothing: no gradient.
    reachable = (log_z > 0.5 * LOG_ZERO)[:, None, None]
    posterior = jnp.where(token_valid & state_valid & reachable, posterior, 0.0)
    return log_z, (posterior, jnp.zeros((0,), blank_BA.dtype), jnp.zeros((0,), label_BAL.dtype))


def _ctc_bwd(residuals, grad_B):
    posterior, blank_like, label_like = residuals
    grad = posterior * grad_B[:, None, None]
    blank = grad[..., 0::2].sum(-1).astype(blank_like.dtype)
    label = grad[..., 1::2].astype(label_like.dtype)
    none = functools.partial(np.zeros, dtype=jax.dtypes.float0)
    batch, _, labels = label.shape
    return blank, label, none((batch, labels)), none((batch,)), none((batch,))


ctc_log_likelihood.defvjp(_ctc_fwd, _ctc_bwd)
