"""Bootstrap: coverage on data of a known law, clustering, pairing, seeds."""

import numpy as np
import pytest

from tiny_align_jax.metrics import _bootstrap, wer
from tiny_align_jax.types import ConfigError


def _statistics(errors, words):
    errors, words = np.asarray(errors, float), np.asarray(words, float)
    return {
        "word_errors": errors,
        "reference_words": words,
        "char_errors": errors,
        "reference_chars": words,
    }


def test_value_is_the_corpus_score_and_lies_inside():
    statistics = _statistics([1, 0, 2, 1], [4, 5, 6, 5])
    interval = _bootstrap.intervals(statistics, wer.from_totals)["wer"]
    assert interval.value == pytest.approx(4 / 20)
    assert interval.low <= interval.value <= interval.high
    assert (interval.unit, interval.num_units) == ("utterance", 4)


def test_coverage_of_a_known_rate():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        statistics = _statistics(rng.binomial(10, 0.3, 60), np.full(60, 10))
        interval = _bootstrap.intervals(statistics, wer.from_totals, num_resamples=400, seed=trial)[
            "wer"
        ]
        hits += interval.low <= 0.3 <= interval.high
    assert 0.90 <= hits / 200 <= 0.99


def test_speakers_that_differ_widen_the_interval():
    rng = np.random.default_rng(2)
    rate = np.repeat(rng.uniform(0, 1, 20), 20)
    statistics = _statistics(rng.binomial(8, rate), np.full(400, 8))
    speakers = np.repeat([f"s{i}" for i in range(20)], 20).tolist()
    loose = _bootstrap.intervals(statistics, wer.from_totals, speakers)["wer"]
    tight = _bootstrap.intervals(statistics, wer.from_totals)["wer"]
    assert (loose.unit, loose.num_units) == ("speaker", 20)
    assert loose.high - loose.low > 2 * (tight.high - tight.low)


@pytest.mark.parametrize(
    ("num_speakers", "unit"), [(1, "utterance"), (4, "utterance"), (5, "speaker")]
)
def test_few_speakers_fall_back_to_utterances(num_speakers, unit):
    statistics = _statistics(np.arange(20), np.full(20, 20))
    speakers = [f"s{i % num_speakers}" for i in range(20)]
    assert _bootstrap.intervals(statistics, wer.from_totals, speakers)["wer"].unit == unit


def test_seed_decides():
    statistics = _statistics([1, 0, 2, 1, 0, 3], [4, 5, 6, 5, 3, 9])
    draws = [_bootstrap.intervals(statistics, wer.from_totals, seed=s)["wer"] for s in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_pairing_sees_a_small_but_steady_gain():
    rng = np.random.default_rng(3)
    errors = rng.binomial(10, rng.uniform(0.1, 0.9, 100))
    words = np.full(100, 10)
    a, b = _statistics(errors, words), _statistics(errors + np.arange(100) % 2, words)
    difference = _bootstrap.paired_differences(a, b, wer.from_totals)["wer"]
    assert difference.value == pytest.approx(-0.05)
    assert difference.high < 0
    interval_a = _bootstrap.intervals(a, wer.from_totals)["wer"]
    interval_b = _bootstrap.intervals(b, wer.from_totals)["wer"]
    assert interval_a.high > interval_b.low  # unpaired intervals overlap and would hide it


def test_nothing_to_resample_and_unpaired_lengths():
    with pytest.raises(ConfigError, match="no utterance"):
        _bootstrap.intervals(_statistics([], []), wer.from_totals)
    with pytest.raises(ConfigError, match="same utterances"):
        _bootstrap.paired_differences(
            _statistics([1], [1]), _statistics([1, 1], [1, 1]), wer.from_totals
        )
