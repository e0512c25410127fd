"""The word prior: what a user talks about, from few words and the training speakers' topics."""

import numpy as np
import pytest

from tiny_align_jax.adapt import word_prior
from tiny_align_jax.types import ConfigError

# Rows 1-3 are one topic, 4-6 another; 0 ends a text, 7 nobody says.
DIGITS, FARM = [np.array([1, 2, 3])] * 5, [np.array([4, 5, 6])] * 5
TOPICS = word_prior.topic_counts([DIGITS, FARM, FARM], 8)
CONFIG = word_prior.Config(weight=1.0, concentration=1.0)


def test_a_topic_is_recognised_by_some_of_its_words():
    bias = word_prior.row_bias(CONFIG, TOPICS, [np.array([1, 1, 2])])
    assert bias[3] > 0 > bias[4]  # row 3 was not said, but belongs to the digits
    other = word_prior.row_bias(CONFIG, TOPICS, [np.array([4, 5, 5])])
    assert other[6] > other[3]


def test_weight_scales_and_zero_turns_off():
    own = [np.array([1, 2])]
    full = word_prior.row_bias(CONFIG, TOPICS, own)
    half = word_prior.row_bias(word_prior.Config(weight=0.5, concentration=1.0), TOPICS, own)
    np.testing.assert_allclose(half, full / 2, atol=1e-6)
    assert not word_prior.row_bias(word_prior.Config(weight=0.0), TOPICS, own).any()


def test_the_prior_stays_a_distribution():
    config = word_prior.Config(weight=1.0, cache=50.0)
    everyone = TOPICS.sum(0) + 0.5
    everyone /= everyone.sum()
    bias = word_prior.row_bias(config, TOPICS, [np.array([1, 7])])
    assert np.exp(bias + np.log(everyone)).sum() == pytest.approx(1.0, abs=1e-5)
    assert bias[7] > 0  # only the user says it


def test_a_word_list_is_boosted_without_any_text():
    config = word_prior.Config(list_boost=2.0)
    bias = word_prior.row_bias(config, np.zeros((0, 8), np.float32), [], listed=[5])
    np.testing.assert_allclose(bias, [0, 0, 0, 0, 0, 2, 0, 0], atol=1e-6)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"^word_prior: cache=-1; expected 0 or more$"):
        word_prior.Config(cache=-1)
    with pytest.raises(ConfigError, match=r"background=1"):
        word_prior.Config(background=1)
