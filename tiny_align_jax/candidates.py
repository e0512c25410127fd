"""Texts that may have been said, and how one of them is chosen."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from tiny_align_jax.reading_config import Config


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A text that may have been said, and what each judge makes of it (log-probabilities; 0: not asked)."""

    text: str
    num_rows: int
    ctc: float
    ngram: float = 0.0
    llm: float = 0.0


def ranked(candidates: Sequence[Candidate], config: Config) -> list[Candidate]:
    """Candidates by score, best first."""
    return sorted(candidates, key=lambda c: -score(c, config))


def score(candidate: Candidate, config: Config) -> float:
    """What a candidate is ranked by."""
    judged = config.llm_weight * candidate.llm + config.ngram_weight * candidate.ngram
    return candidate.ctc + judged + config.row_bonus * candidate.num_rows


def choose(candidates: Sequence[Candidate], config: Config) -> str:
    """The text to report: the best, or the one that most of the others agree with."""
    if not config.consensus or len(candidates) < 2:
        return candidates[0].text
    scores = config.consensus * np.array([score(c, config) for c in candidates])
    probs = np.exp(scores - np.logaddexp.reduce(scores))
    words = [c.text.split() for c in candidates]
    errors = [
        sum(p * Levenshtein.distance(a, b) for b, p in zip(words, probs, strict=True))
        for a in words
    ]
    return candidates[int(np.argmin(errors))].text
