"""ROUGE against hand-computed f-measures and against rouge_score's own tokenizer."""

import pytest
from rouge_score import rouge_scorer

from tiny_align_jax.metrics import rouge

LOWER = rouge.Config(normalizer="lower")


def test_hand_computed():
    scores = rouge.compute(LOWER, ["the cat sat down"], ["the cat down sat here"])
    # unigrams: 4 shared, P 4/5, R 1; bigrams: "the cat" of 4 and 3; LCS "the cat sat" or "down": 3.
    assert scores["rouge1"] == pytest.approx(2 * 0.8 * 1 / 1.8)
    assert scores["rouge2"] == pytest.approx(2 * (1 / 4) * (1 / 3) / (1 / 4 + 1 / 3))
    assert scores["rougeL"] == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))


def test_equals_rouge_score_on_ascii():
    references = ["we call it bear", "tom gives up boxing", "look at ann's pants", "hi"]
    hypotheses = ["we call it bare", "tom give up the boxing", "look at and pants", ""]
    scorer = rouge_scorer.RougeScorer(list(rouge.NAMES), use_stemmer=False)
    ours = rouge.per_utterance(LOWER, references, hypotheses)
    for i, (r, h) in enumerate(zip(references, hypotheses, strict=True)):
        theirs = scorer.score(r.replace("'", ""), h)
        for name in rouge.NAMES:
            assert ours[name][i] == pytest.approx(theirs[name].fmeasure)


def test_other_scripts_are_not_dropped():
    assert rouge.compute(LOWER, ["жил был кот"], ["жил был пёс"])["rouge1"] == pytest.approx(2 / 3)


def test_empty_texts():
    assert rouge.compute(LOWER, [""], [""])["rouge1"] == 1.0
    assert rouge.compute(LOWER, [""], ["words"])["rouge1"] == 0.0
    assert rouge.compute(LOWER, ["words"], [""])["rougeL"] == 0.0
    assert rouge.compute(LOWER, [], []) == dict.fromkeys(rouge.NAMES, 0.0)
