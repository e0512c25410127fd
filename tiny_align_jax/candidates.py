"""Texts that may have been said, and how one of them is chosen."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from rapidfuzz.distance import Levenshtein


class Weights(Protocol):
    """The part of a reading's config that chooses."""

    @property
    def llm_weight(self) -> float: ...
    @property
    def ngram_weight(self) -> float: ...
    @property
    def row_bonus(self) -> float: ...
    @property
    def consensus(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A text that may have been said, and what each judge makes of it (log-probabilities; 0: not asked)."""

    text: str
    num_rows: int
    ctc: float
    ngram: float = 0.0
    llm: float = 0.0


def ranked(candidates: Sequence[Candidate], weights: Weights) -> list[Candidate]:
    """Candidates by score, best first."""
    return sorted(candidates, key=lambda c: -score(c, weights))


def score(candidate: Candidate, weights: Weights) -> float:
    """What a candidate is ranked by."""
    judged = weights.llm_weight * candidate.llm + weights.ngram_weight * candidate.ngram
    return candidate.ctc + judged + weights.row_bonus * candidate.num_rows


def choose(candidates: Sequence[Candidate], weights: Weights) -> str:
    """The text to report: the best, or the one that most of the others agree with."""
    if not weights.consensus or len(candidates) < 2:
        return candidates[0].text
    scores = weights.consensus * np.array([score(c, weights) for c in candidates])
    probs = np.exp(scores - np.logaddexp.reduce(scores))
    words = [c.text.split() for c in candidates]
    errors = [
        sum(p * Levenshtein.distance(a, b) for b, p in zip(words, probs, strict=True))
        for a in words
    ]
    return candidates[int(np.argmin(errors))].text
