"""Kneser-Ney: sums to one, worked by hand, and better than chance on text it has not seen."""

import numpy as np
import pytest

from tiny_align_jax import ngram
from tiny_align_jax.types import ConfigError

TEXTS = [[1, 2, 3], [1, 2, 4], [5, 2, 3], [1, 2, 3], [6]]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("prefix", [(), (1,), (1, 2), (7,), (7, 2), (3, 3, 3), (1, 2, 3)])
def test_sums_to_one_and_leaves_nothing_out(order, prefix):
    model = ngram.build(TEXTS, num_rows=9, order=order)
    log_probs_V = model.next_log_probs(prefix)
    assert log_probs_V.shape == (9,)
    assert np.isfinite(log_probs_V).all()
    assert np.exp(log_probs_V).sum() == pytest.approx(1.0)


def test_bigram_by_hand():
    # Texts 1 2 and 1 3; bigrams: ^1 (2), 1 2, 1 3, 2 end, 3 end (1 each).
    model = ngram.build([[1, 2], [1, 3]], num_rows=5, order=2)
    bigram = 4 / (4 + 2 * 1)  # four bigrams once, one twice
    # Rows by how many different ones they followed: 1 -> 1 (the start), 2 -> 1, 3 -> 1, end -> 2.
    unigram = 3 / (3 + 2 * 1)
    base = (1 - unigram) / 5 + unigram * 4 / 5 / 5  # row 2: own count, and a share of all discounts
    assert model.unigram_V[2] == pytest.approx(base)
    assert np.exp(model.next_log_probs((1,)))[2] == pytest.approx(
        (1 - bigram) / 2 + (2 * bigram / 2) * base
    )
    assert np.exp(model.next_log_probs(()))[1] == pytest.approx(
        (2 - bigram) / 2 + bigram / 2 * model.unigram_V[1]
    )


def test_counts_kinds_of_contexts_not_uses():
    # "francisco" (2) is frequent but follows only "san" (1); 3 follows several.
    texts = [[1, 2]] * 20 + [[4, 3], [5, 3], [6, 3]]
    model = ngram.build(texts, num_rows=8, order=2)
    assert model.unigram_V[3] > model.unigram_V[2]
    after = np.exp(model.next_log_probs((1,)))
    assert after[2] > 0.9


def test_text_is_the_product_of_its_steps():
    model = ngram.build(TEXTS, num_rows=9)
    steps = [
        model.next_log_probs(())[1],
        model.next_log_probs((1,))[2],
        model.next_log_probs((1, 2))[ngram.END],
    ]
    assert model.log_prob([1, 2]) == pytest.approx(sum(steps))


def test_longer_contexts_predict_structure_that_they_have_seen():
    rng = np.random.default_rng(0)

    def sentence():
        subject = rng.integers(1, 4)
        return [subject, 3 + subject, rng.integers(7, 12)]  # the verb agrees with the subject

    train, unseen = [sentence() for _ in range(200)], [sentence() for _ in range(50)]
    scores = [
        np.mean([ngram.build(train, 12, order).log_prob(text) for text in unseen])
        for order in (1, 2)
    ]
    assert scores[1] > scores[0] + 1.0


def test_refusals():
    with pytest.raises(ConfigError, match=r"^n-gram: no text to count; expected"):
        ngram.build([], 5)
    with pytest.raises(ConfigError, match=r"^n-gram: order=0; expected 1 or more$"):
        ngram.build(TEXTS, 9, order=0)
    with pytest.raises(ConfigError, match=r"rows \[6\] .* of 6 rows; expected"):
        ngram.build(TEXTS, 6)
