"""CTC against a sum over every alignment, and its analytic gradient against finite sums."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tiny_align_jax import ctc


def _collapse(path, blank):
    return [k for k, _ in itertools.groupby(path) if k != blank]


def _brute_force(log_probs_AV, targets, blank):
    scores = []
    for path in itertools.product(range(log_probs_AV.shape[1]), repeat=log_probs_AV.shape[0]):
        if _collapse(path, blank) == list(targets):
            scores.append(sum(log_probs_AV[t, v] for t, v in enumerate(path)))
    return np.logaddexp.reduce(scores) if scores else -np.inf


def _inputs(log_probs_BAV, targets_BL, blank):
    label = jnp.take_along_axis(
        log_probs_BAV,
        jnp.broadcast_to(
            targets_BL[:, None],
            (targets_BL.shape[0], log_probs_BAV.shape[1], targets_BL.shape[1]),
        ),
        axis=2,
    )
    repeat = jnp.pad(targets_BL[:, 1:] == targets_BL[:, :-1], ((0, 0), (1, 0)))
    return log_probs_BAV[..., blank], label, repeat


@pytest.mark.parametrize(
    "targets", [[], [0], [1, 1], [0, 1], [2, 2, 0], [0, 1, 0], [1, 1, 1]], ids=str
)
@pytest.mark.parametrize("num_tokens", [1, 3, 5])
def test_equals_sum_over_all_alignments(targets, num_tokens):
    blank, padded_tokens, padded_targets = 3, 6, 4
    logits = jax.random.normal(jax.random.key(len(targets)), (1, padded_tokens, 4)) * 2
    log_probs = jax.nn.log_softmax(logits)
    expected = _brute_force(np.asarray(log_probs[0, :num_tokens], np.float64), targets, blank)
    padded = jnp.array([targets + [0] * (padded_targets - len(targets))])
    got = ctc.ctc_log_likelihood(
        *_inputs(log_probs, padded, blank), jnp.array([num_tokens]), jnp.array([len(targets)])
    )
    if np.isinf(expected):
        assert not ctc.is_feasible(num_tokens, np.array(targets))
        assert got[0] < 0.5 * ctc.LOG_ZERO
    else:
        assert ctc.is_feasible(num_tokens, np.array(targets))
        np.testing.assert_allclose(got[0], expected, rtol=1e-5)


def test_value_and_gradient_equal_optax():
    batch, tokens, vocab, length, blank = 4, 20, 9, 6, 8
    key = jax.random.key(0)
    logits = jax.random.normal(key, (batch, tokens, vocab)) * 3
    targets = jax.random.randint(key, (batch, length), 0, vocab - 1)
    num_tokens, num_targets = jnp.array([20, 17, 13, 9]), jnp.array([6, 4, 1, 0])

    def ours(logits):
        log_probs = jax.nn.log_softmax(logits)
        parts = _inputs(log_probs, targets, blank)
        return -ctc.ctc_log_likelihood(*parts, num_tokens, num_targets).sum()

    def reference(logits):
        token_pad = (jnp.arange(tokens)[None] >= num_tokens[:, None]).astype(jnp.float32)
        target_pad = (jnp.arange(length)[None] >= num_targets[:, None]).astype(jnp.float32)
        return optax.ctc_loss(logits, token_pad, targets, target_pad, blank_id=blank).sum()

    value, grad = jax.value_and_grad(ours)(logits)
    expected_value, expected_grad = jax.value_and_grad(reference)(logits)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=2e-5)


def test_infeasible_row_has_finite_loss_and_no_gradient():
    logits = jnp.zeros((1, 2, 4))
    targets = jnp.array([[1, 1, 2]])

    def loss(logits):
        parts = _inputs(jax.nn.log_softmax(logits), targets, 3)
        return -ctc.ctc_log_likelihood(*parts, jnp.array([2]), jnp.array([3])).sum()

    value, grad = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value) and np.all(np.asarray(grad) == 0)


def _unit(key, shape):
    x = jax.random.normal(jax.random.key(key), shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("scale", [0.5, 20.0, ctc.MAX_SCALE])
def test_normalizer_in_one_pass_equals_the_whole_tables_in_value_and_gradient(scale):
    x, table = _unit(1, (5, 8)), _unit(2, (37, 8))
    weights = jnp.arange(1.0, 6.0)

    def simple(x, scale):
        return (jax.nn.logsumexp(scale * x @ table.T, axis=-1) * weights).sum()

    def fast(x, scale, chunk):
        return (ctc.cosine_log_normalizer(x, table, scale, chunk) * weights).sum()

    expected, expected_grads = jax.value_and_grad(simple, (0, 1))(x, scale)
    for chunk in (10, 64):
        value, grads = jax.value_and_grad(fast, (0, 1))(x, scale, chunk)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for grad, wanted in zip(grads, expected_grads, strict=True):
            np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-4)


def _errors_in(dtype, scale):
    """Of the normaliser, largest, and of its gradient, relative, against float32; each query is a row."""
    x, table = _unit(1, (64, 32)), _unit(2, (500, 32)).at[:64].set(_unit(1, (64, 32)))

    def run(dtype):
        def total(x):
            value_N = ctc.cosine_log_normalizer(
                x, ctc.tables(table, dtype), jnp.float32(scale), 128
            )
            return value_N.sum(), value_N

        (_, value_N), grad = jax.value_and_grad(total, has_aux=True)(x)
        return value_N, grad

    (value, grad), (expected, wanted) = run(dtype), run("float32")
    error = jnp.linalg.norm(grad - wanted) / jnp.linalg.norm(wanted)
    return float(jnp.abs(value - expected).max()), float(error)


@pytest.mark.parametrize("scale", [20.0, ctc.MAX_SCALE])
def test_normalizer_in_half_precision_stays_close_and_float16_is_closer(scale):
    bfloat16, float16 = _errors_in("bfloat16", scale), _errors_in("float16", scale)
    assert bfloat16[0] < 0.003 * scale
    assert float16[0] < 0.0006 * scale
    assert max(bfloat16[1], float16[1]) < 0.01


def test_normalizer_neither_overflows_nor_vanishes_at_the_largest_scale():
    x = jnp.array([[1.0, 0.0]])
    for cosine in (1.0, -0.3):
        row = jnp.array([[cosine, (1 - cosine**2) ** 0.5]])
        value, grad = jax.value_and_grad(
            lambda x, row=row: ctc.cosine_log_normalizer(
                x, row, jnp.float32(ctc.MAX_SCALE), 8
            ).sum()
        )(x)
        np.testing.assert_allclose(value, ctc.MAX_SCALE * cosine, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(grad, ctc.MAX_SCALE * row, rtol=1e-4)


def test_greedy_path_drops_blanks_repeats_and_padding():
    best = jnp.array([[9, 1, 1, 9, 1, 2, 2, 3]])
    keep = ctc.greedy_path(best, blank=9, num_tokens_B=jnp.array([7]))
    assert np.asarray(best)[0][np.asarray(keep)[0]].tolist() == [1, 1, 2]
