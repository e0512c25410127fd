"""Training sentences that are about what a user says: cosine of word counts weighted by rarity (tf-idf)."""

import collections
import math
from collections.abc import Sequence

from tiny_align_jax.data.vocabulary import spoken_form


class Related:
    """Sentences to pick from."""

    def __init__(self, sentences: Sequence[str]):
        """Args: training sentences; repeats count once."""
        self._sentences = sorted({spoken_form(s) for s in sentences} - {""})
        self._bags = [collections.Counter(s.split()) for s in self._sentences]
        documents = collections.Counter(w for bag in self._bags for w in bag)
        total = len(self._sentences) + 1
        self._rarity = {w: math.log(total / n) for w, n in documents.items()}
        self._norms = [self._norm(bag) for bag in self._bags]

    def to(self, said: Sequence[str], count: int) -> list[str]:
        """The `count` sentences nearest to all that was said, the nearest last."""
        own = collections.Counter(w for text in said for w in spoken_form(text).split())
        scores = []
        for i, (bag, norm) in enumerate(zip(self._bags, self._norms, strict=True)):
            # Square roots: a word that a user repeats must not be all that counts.
            product = sum(
                math.sqrt(n * own[w]) * self._rarity[w] ** 2 for w, n in bag.items() if w in own
            )
            scores.append((product / norm, -i) if norm else (0.0, -i))
        nearest = sorted(range(len(scores)), key=lambda i: scores[i])[-count:] if count else []
        return [self._sentences[i] for i in nearest]

    def _norm(self, bag: collections.Counter[str]) -> float:
        return math.sqrt(sum(n * self._rarity[w] ** 2 for w, n in bag.items()))
