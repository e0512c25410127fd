"""WER and CER against hand-counted errors, and the cases that break other toolkits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_align_jax.metrics import wer
from tiny_align_jax.types import ConfigError

LOWER = wer.Config(normalizer="lower")


def test_hand_counted():
    # 1 substitution, 1 deletion, 1 insertion over 3 + 2 + 1 words.
    scores = wer.compute(LOWER, ["the cat sat", "go home", "hi"], ["the bat sat", "go", "hi there"])
    assert scores["wer"] == pytest.approx(3 / 6)
    # cat->bat 1, " home" 5, " there" 6 over 11 + 7 + 2 characters, spaces counted.
    assert scores["cer"] == pytest.approx(12 / 20)


def test_corpus_level_is_not_the_mean_of_utterances():
    scores = wer.compute(LOWER, ["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"])
    assert scores["wer"] == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [("", "", 0.0), ("", "two words", 2.0), ("two words", "", 1.0), ("?!", "", 0.0)],
)
def test_empty_texts(reference, hypothesis, expected):
    assert wer.compute(LOWER, [reference], [hypothesis])["wer"] == expected


def test_no_utterances():
    assert wer.compute(LOWER, [], []) == {"wer": 0.0, "cer": 0.0}


def test_normaliser_acts_on_both_sides():
    reference, hypothesis = ["I'm 21, Colour!"], ["i am twenty one color"]
    assert wer.compute(wer.Config(normalizer="whisper_english"), reference, hypothesis)["wer"] == 0
    assert wer.compute(LOWER, reference, hypothesis)["wer"] > 0


def test_lengths_must_agree():
    with pytest.raises(ConfigError, match="2 references but 1 hypotheses"):
        wer.compute(LOWER, ["a", "b"], ["a"])


words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_agrees_with_a_plain_edit_distance(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    counts = wer.per_utterance(LOWER, references, hypotheses)
    for i, (reference, hypothesis) in enumerate(pairs):
        assert counts["word_errors"][i] == _distance(reference.split(), hypothesis.split())
        assert counts["char_errors"][i] == _distance(reference, hypothesis)
        assert counts["reference_words"][i] == len(reference.split())
        assert counts["reference_chars"][i] == len(reference)


def _distance(a, b):
    row = np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        previous, row = row, np.full(len(b) + 1, i)
        for j, y in enumerate(b, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y))
    return row[-1]
