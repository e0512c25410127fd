"""Prefix beam search against a sum over every alignment of every text."""

import itertools
import time

import numpy as np
import pytest

from tiny_align_jax import beam
from tiny_align_jax.types import ConfigError

ROWS = 3
EVERYTHING = beam.Config(width=400, top_rows=ROWS, min_log_prob=-1e9, margin=1e9)


def _emissions(num_tokens, rows=ROWS, seed=0, sharpness=1.5):
    """(pruned form without pruning, log_probs_AV with the blank last)."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(num_tokens, rows + 1))
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    order = np.argsort(-log_probs[:, :rows], axis=1)
    sorted_probs = np.take_along_axis(log_probs, order, axis=1)
    return beam.Emissions(order, sorted_probs, log_probs[:, rows]), log_probs


def _enumerate(log_probs_AV):
    """Log-probability of every text that any alignment spells."""
    blank, found = log_probs_AV.shape[1] - 1, {}
    for path in itertools.product(range(blank + 1), repeat=len(log_probs_AV)):
        text = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        score = sum(log_probs_AV[t, v] for t, v in enumerate(path))
        found[text] = np.logaddexp(found.get(text, -np.inf), score)
    return found


def _language(prefix):
    """A bigram with an opinion; sums to one over rows and end."""
    logits = np.random.default_rng(100 + (prefix[-1] if prefix else ROWS)).normal(size=ROWS + 1) * 2
    return logits - np.logaddexp.reduce(logits)


def _score(prefixes, cut=()):
    """As `_language` says; a prefix in `cut` turns out 3 nats worse once it is whole."""
    answers = []
    for prefix in prefixes:
        total = sum(_language(prefix[:i])[row] for i, row in enumerate(prefix))
        total -= 3.0 * sum(prefix[:i] in cut for i in range(1, len(prefix) + 1))
        following = _language(prefix)
        answers.append(beam.Language(total, following[:ROWS], following[ROWS]))
    return answers


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_text_gets_the_sum_of_its_alignments(num_tokens, seed):
    emissions, log_probs = _emissions(num_tokens, seed=seed)
    expected = _enumerate(log_probs)
    (found,) = beam.search([emissions], EVERYTHING)
    assert {h.rows for h in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(expected[hypothesis.rows], abs=1e-9)
        assert hypothesis.score == hypothesis.log_prob
    assert found == sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("cut", [(), ((1,), (0, 2))], ids=["as told", "corrected when whole"])
def test_fusion_ranks_as_the_sum_of_both_says(cut):
    emissions, log_probs = _emissions(5, seed=3)
    config = beam.Config(width=400, top_rows=ROWS, min_log_prob=-1e9, margin=1e9, row_bonus=0.7)
    (found,) = beam.search([emissions], config, lambda asked: _score(asked, cut))
    expected = {}
    for text, log_prob in _enumerate(log_probs).items():
        (said,) = _score([text], cut)
        expected[text] = log_prob + said.log_prob + said.end + 0.7 * len(text)
    assert [h.rows for h in found] == sorted(expected, key=lambda text: -expected[text])
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.rows], abs=1e-9)


def test_fusion_finds_what_a_narrow_beam_alone_has_lost():
    emissions, _ = _emissions(8, seed=5, sharpness=0.7)
    narrow = beam.Config(width=3, top_rows=ROWS, min_log_prob=-1e9)
    (alone,) = beam.search([emissions], narrow)
    (fused,) = beam.search([emissions], narrow, _score)
    best = max(s.log_prob + s.end + h.log_prob for h in alone for s in _score([h.rows]))
    assert fused[0].score > best


def test_a_narrow_beam_gives_lower_bounds():
    emissions, log_probs = _emissions(6, seed=4)
    expected = _enumerate(log_probs)
    (found,) = beam.search([emissions], beam.Config(width=4, top_rows=2))
    assert len(found) <= 4
    assert all(h.log_prob <= expected[h.rows] + 1e-9 for h in found)
    assert found[0].rows == max(expected, key=lambda text: expected[text])


def test_questions_of_many_utterances_are_put_together_and_change_nothing():
    utterances = [_emissions(n, seed=n)[0] for n in (3, 6, 4)]
    batches = []

    def score(prefixes):
        assert len(set(prefixes)) == len(prefixes)
        batches.append(len(prefixes))
        return _score(prefixes)

    done = []
    config = beam.Config(width=5, top_rows=ROWS)
    together = beam.search(utterances, config, score, on_done=done.append)
    asked = len(batches)
    alone = beam.search(utterances, config, score, together=1)
    assert together == alone
    assert done == [3]
    assert asked < len(batches) - asked
    assert batches[0] == 1  # all begin with the same empty prefix


def test_silence_reads_as_nothing():
    silent = beam.Emissions(np.zeros((4, 2), int), np.full((4, 2), -20.0), np.full(4, -1e-8))
    (found,) = beam.search([silent])
    assert [h.rows for h in found] == [()]
    (fused,) = beam.search([silent], score=_score)
    assert fused[0].language == pytest.approx(_language(())[ROWS])
    none = beam.Emissions(np.zeros((0, 2), int), np.zeros((0, 2)), np.zeros(0))
    assert beam.search([none])[0][0].log_prob == 0


def test_repeats_need_a_blank_between_them():
    rows = np.array([[0], [0], [0]])
    log_probs = np.log(np.array([[0.9], [0.1], [0.9]]))
    emissions = beam.Emissions(rows, log_probs, np.log(np.array([0.1, 0.9, 0.1])))
    assert beam.search([emissions])[0][0].rows == (0, 0)


def test_much_faster_than_speech():
    # 250 audio tokens are 20 s of speech; typical peaks: mostly blank, some doubt at the spikes.
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(250, 2001))
    logits[:, 2000] += 14
    logits[::4, :2000] += np.where(rng.random((63, 2000)) < 0.005, 13.0, 0)
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    order = np.argsort(-log_probs[:, :2000], axis=1)[:, :24]
    best = np.take_along_axis(log_probs, order, axis=1)
    start_s = time.process_time()
    beam.search([beam.Emissions(order, best, log_probs[:, 2000])])
    assert time.process_time() - start_s < 2.0


def test_bad_switches_are_all_named():
    with pytest.raises(ConfigError) as error:
        beam.Config(width=0, min_log_prob=1.0, margin=0)
    assert all(word in str(error.value) for word in ("width=0", "min_log_prob=1.0", "margin=0"))
