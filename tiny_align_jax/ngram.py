"""An n-gram model over table rows, counted from training transcripts: a language model for nothing.

Interpolated Kneser-Ney: what a longer context has not seen is left to the shorter one, and below the
longest context a row counts by how many different rows it followed, not by how often. Every row of the
vocabulary keeps a probability, so that it can steer a beam search.

Source: Kneser and Ney, ICASSP 1995; interpolated, as Chen and Goodman 1999, with one discount an order.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tiny_align_jax import checks

END = 0  # row 0 of every vocabulary is the end of the text
_START = -1
_Context = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ngram:
    """Made by `build`.

    Attributes:
        order: longest n-gram.
        unigram_V: probability of every row without context.
        contexts: by context: rows that followed it, their discounted probabilities, and the weight of
            the next shorter context.
    """

    order: int
    unigram_V: np.ndarray
    contexts: Mapping[_Context, tuple[np.ndarray, np.ndarray, float]]

    def next_log_probs(self, prefix: Sequence[int]) -> np.ndarray:
        """Log-probability of every row after `prefix`, float64[V]; END is the end of the text."""
        history = (_START, *prefix)
        probs_V = self.unigram_V.copy()
        for length in range(1, min(self.order - 1, len(history)) + 1):
            entry = self.contexts.get(history[-length:])
            if entry is None:  # then no longer context was seen either
                break
            rows, discounted, backoff = entry
            probs_V *= backoff
            probs_V[rows] += discounted
        return np.log(probs_V)

    def log_prob(self, rows: Sequence[int]) -> float:
        """Log-probability of a whole text, with its end."""
        whole = (*rows, END)
        return float(sum(self.next_log_probs(whole[:i])[row] for i, row in enumerate(whole)))


def build(texts: Sequence[Sequence[int]], num_rows: int, order: int = 3) -> Ngram:
    """Counts texts given as rows (without the end, which is added).

    Args:
        texts: training transcripts, never test text.
        num_rows: rows of the vocabulary.
        order: longest n-gram; 1 is a bag of rows.

    Raises:
        ConfigError: no text, an order below 1, or a row outside the vocabulary.
    """
    problems = [] if order >= 1 else [f"order={order}; expected 1 or more"]
    if not texts:
        problems.append("no text to count; expected training transcripts")
    wrong = sorted({int(r) for text in texts for r in text if not 0 <= r < num_rows})
    if wrong:
        problems.append(
            f"rows {wrong[:5]} are outside the vocabulary of {num_rows} rows; "
            "expected texts that this vocabulary encoded"
        )
    checks.refuse("n-gram", problems)
    counts = _counts(texts, order)
    contexts: dict[_Context, tuple[np.ndarray, np.ndarray, float]] = {}
    unigram_V = np.full(num_rows, 1.0 / num_rows)
    discounts = _discounts(counts, order)
    for context, followers in counts.items():
        rows = np.array(sorted(followers), int)
        seen = np.array([followers[int(r)] for r in rows], float)
        discounted = (seen - min(discounts[len(context)], 0.99)) / seen.sum()
        backoff = float(1.0 - discounted.sum())
        if context:
            contexts[context] = (rows, discounted, backoff)
        else:
            unigram_V *= backoff
            unigram_V[rows] += discounted
    return Ngram(order, unigram_V, contexts)


def _counts(texts: Sequence[Sequence[int]], order: int) -> dict[_Context, collections.Counter[int]]:
    """`[context][row]`: how often at the longest order; else after how many different rows.

    Nothing stands before the start of a text, so contexts that begin there count how often.
    """
    grams: collections.Counter[_Context] = collections.Counter()
    for text in texts:
        whole = (_START, *(int(r) for r in text), END)
        for n in range(1, order + 1):
            grams.update(whole[i : i + n] for i in range(len(whole) - n + 1))
    before: collections.Counter[_Context] = collections.Counter(
        gram[1:] for gram in grams if len(gram) > 1
    )
    counts: dict[_Context, collections.Counter[int]] = {}
    for gram, count in grams.items():
        context, row = gram[:-1], gram[-1]
        if row == _START:
            continue
        by_use = len(gram) == order or context[:1] == (_START,)
        followers = counts.setdefault(context, collections.Counter())
        followers[row] = count if by_use else before[gram]
    return counts


def _discounts(counts: Mapping[_Context, Mapping[int, int]], order: int) -> list[float]:
    """What every count of a context of length 0, 1, ... gives up: n1 / (n1 + 2 n2)."""
    ones, twos = [0] * order, [0] * order
    for context, followers in counts.items():
        ones[len(context)] += sum(c == 1 for c in followers.values())
        twos[len(context)] += sum(c == 2 for c in followers.values())
    # A corpus without singletons would give up nothing, and unseen rows could never be read.
    return [max(a / (a + 2 * b) if a else 0.0, 0.1) for a, b in zip(ones, twos, strict=True)]
