"""Minimum risk: edit distances against jiwer, and a gradient that really is that of the expected errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import pytest

from tiny_align_jax.objectives import _edits, embedlink_ctc, min_risk
from tiny_align_jax.types import Batch, ConfigError, Frozen

TABLE = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
FROZEN = Frozen(table_VD=TABLE, row_ids_V=np.arange(3, dtype=np.int32))
PARAMS = embedlink_ctc.init(embedlink_ctc.Config(initial_scale=2.0), jax.random.key(1), FROZEN)
TARGET = (1, 2)
NUM_TOKENS = 3


def test_edit_distance_counts_as_jiwer_does():
    rng = np.random.default_rng(0)
    said = [rng.integers(0, 4, n) for n in (0, 1, 7, 5, 9, 3)]
    meant = [rng.integers(0, 4, n) for n in (2, 1, 4, 5, 3, 6)]

    def padded(rows):  # what lies behind a row must not matter
        return np.stack([np.append(r, rng.integers(0, 4, 9 - len(r))) for r in rows])

    counts = [np.array([len(r) for r in rows]) for rows in (said, meant)]
    found = _edits.edit_distance(padded(said), counts[0], padded(meant), counts[1])
    for distance, hypothesis, reference in zip(found, said, meant, strict=True):
        texts = [" ".join(f"w{i}" for i in row) for row in (reference, hypothesis)]
        made = jiwer.process_words(texts[0], texts[1])
        assert distance == made.substitutions + made.deletions + made.insertions


def _batch(rows):
    return Batch(
        features_BTE=np.zeros((rows, 1, 1), np.float32),
        num_frames_B=np.ones(rows, np.int32),
        target_ids_BL=np.tile(np.array(TARGET, np.int32), (rows, 1)),
        num_targets_B=np.full(rows, len(TARGET), np.int32),
        weight_B=np.ones(rows, np.float32),
        index_B=np.arange(rows, dtype=np.int32),
    )


def _edits_of(reading):
    """Errors per target of one reading, by the textbook's recursion."""

    @functools.cache
    def go(i, j):
        if i == 0 or j == 0:
            return i + j
        same = go(i - 1, j - 1) + (reading[i - 1] != TARGET[j - 1])
        return min(same, go(i - 1, j) + 1, go(i, j - 1) + 1)

    return go(len(reading), len(TARGET)) / len(TARGET)


def _paths():
    """Every alignment of the toy, and the errors of what it reads."""
    blank, paths, errors = len(TABLE), [], []
    for path in itertools.product(range(blank + 1), repeat=NUM_TOKENS):
        merged = [s for s, before in zip(path, (None, *path), strict=False) if s != before]
        paths.append(path)
        errors.append(_edits_of(tuple(s for s in merged if s != blank)))
    return np.array(paths), np.array(errors)


PATHS, ERRORS = _paths()


@jax.jit
def _expected_errors(audio_AD):
    """Exactly: the mean over all alignments."""
    config = min_risk.Config(ctc_weight=0.0)
    logs_AV = min_risk.log_probs(config, PARAMS, audio_AD[None], FROZEN)[0]
    weights = jnp.exp(logs_AV[jnp.arange(NUM_TOKENS), PATHS].sum(-1))
    return weights @ ERRORS


@jax.jit
def _sampled(audio_AD, noise):
    """Value and gradient of the objective, averaged over rows that differ in their random bits alone."""
    config = min_risk.Config(num_readings=8, ctc_weight=0.0)
    rows = len(noise)

    def mean_loss(audio_AD):
        audio = jnp.broadcast_to(audio_AD, (rows, *audio_AD.shape)).at[:, 0, 0].add(noise)
        mask = jnp.ones((rows, NUM_TOKENS), bool)
        return min_risk.loss(config, PARAMS, audio, mask, _batch(rows), FROZEN)[0].mean()

    return jax.value_and_grad(mean_loss)(audio_AD)


def test_gradient_is_that_of_the_expected_errors_and_lowers_them():
    audio = np.random.default_rng(5).normal(size=(NUM_TOKENS, 4)).astype(np.float32)
    noise = 1e-4 * np.random.default_rng(6).normal(size=2500).astype(np.float32)
    value, gradient = _sampled(audio, noise)
    exact, exact_gradient = jax.value_and_grad(_expected_errors)(audio)
    np.testing.assert_allclose(value, exact, rtol=0.02)
    size = np.abs(exact_gradient).max()
    np.testing.assert_allclose(gradient, exact_gradient, atol=0.06 * size)
    assert size > 0.05
    for _ in range(6):
        audio = audio - 0.8 * _sampled(audio, noise)[1]
    assert _expected_errors(audio) < exact - 0.1


def test_draws_follow_the_first_token_alone():
    config = min_risk.Config(num_readings=6, initial_scale=1.0)
    audio = np.random.default_rng(1).normal(size=(2, 9, 4)).astype(np.float32)
    audio[1] = audio[0]
    mask = np.ones((2, 9), bool)
    logs = min_risk.log_probs(config, PARAMS, audio, FROZEN)
    draw = jax.jit(functools.partial(min_risk._draw, config))
    rows, counts = map(np.asarray, draw(audio, logs, mask))
    np.testing.assert_array_equal(rows[0], rows[1])
    assert len({tuple(row[:n].tolist()) for row, n in zip(rows[0], counts[0], strict=True)}) > 2
    audio[1, 0, 0] += 1e-3
    other, _ = draw(audio, logs, mask)
    assert (np.asarray(other)[1] != rows[1]).any()


def test_values_that_cannot_work_are_named_together():
    with pytest.raises(ConfigError, match=r"num_readings=1.*ctc_weight=-1"):
        min_risk.Config(num_readings=1, ctc_weight=-1)
