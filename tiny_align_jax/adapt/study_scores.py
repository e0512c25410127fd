"""Word errors of many copies, and what a study says of them: paired, over speakers, with intervals.

Speakers are resampled, all of their folds and seeds together, with the same draws for everything that
is compared.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from tiny_align_jax.data.splits import AGE_BANDS, age_band
from tiny_align_jax.metrics import _normalizers

NORMALIZER = "whisper_english"
_RESAMPLES = 2000
_LEVEL = 0.95


@functools.lru_cache(maxsize=200_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_normalizers.NORMALIZERS[NORMALIZER](text).split())


@functools.lru_cache(maxsize=400_000)
def word_errors(reference: str, hypothesis: str) -> int:
    """Substitutions, deletions and insertions; readings repeat, so they are remembered."""
    return Levenshtein.distance(_words(reference), _words(hypothesis))


def errors_of(references: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Word errors of each job's test utterances, [J, tests]."""
    return np.array(
        [
            [word_errors(r, t) for r, t in zip(refs, heard, strict=True)]
            for refs, heard in zip(references, texts, strict=True)
        ]
    )


def words_of(references: Sequence[Sequence[str]]) -> np.ndarray:
    """Reference words of each job's test utterances, [J, tests]."""
    return np.array([[len(_words(r)) for r in refs] for refs in references])


@dataclasses.dataclass(frozen=True)
class Table:
    """Errors summed by speaker.

    Attributes:
        words_U: reference words of each speaker, all folds and seeds.
        bands_U: age band of each speaker.
        errors: system -> errors of each speaker.
        by_test: system -> errors of each test utterance of each speaker, [U, tests].
    """

    words_U: np.ndarray
    bands_U: np.ndarray
    errors: Mapping[str, np.ndarray]
    by_test: Mapping[str, np.ndarray]


def table(
    speaker_J: np.ndarray,
    ages: Sequence[float | None],
    words_JN: np.ndarray,
    errors: Mapping[str, np.ndarray],
) -> Table:
    """Sums by speaker; every speaker has as many jobs as every other."""
    count = len(ages)
    order = np.argsort(speaker_J, kind="stable")

    def by_speaker(x_JN: np.ndarray) -> np.ndarray:
        return x_JN[order].reshape(count, -1)

    return Table(
        words_U=by_speaker(words_JN).sum(1),
        bands_U=np.array([age_band(age) for age in ages]),
        errors={name: by_speaker(e).sum(1) for name, e in errors.items()},
        by_test={name: by_speaker(e) for name, e in errors.items()},
    )


def wer(found: Table, system: str) -> dict[str, Any]:
    """Pooled WER of a system with its interval."""
    draws = _draws(len(found.words_U))
    errors = found.errors[system]
    rates = (draws @ errors) / (draws @ found.words_U)
    return _interval(errors.sum() / found.words_U.sum(), rates)


def reduction(found: Table, after: str, before: str) -> dict[str, Any]:
    """Relative reduction of WER from `before` to `after`, pooled and as a mean over speakers."""
    draws = _draws(len(found.words_U))
    a, b = found.errors[after], found.errors[before]
    pooled = 1 - (draws @ a) / np.maximum(draws @ b, 1e-9)
    # A speaker without errors before has no relative reduction; half an error stands for none.
    each = (b - a) / np.maximum(b, 0.5)
    return {
        "pooled": _interval(1 - a.sum() / max(b.sum(), 1e-9), pooled),
        "mean": _interval(each.mean(), (draws @ each) / draws.sum(1)),
        "wer": _interval(
            (a - b).sum() / found.words_U.sum(), (draws @ (a - b)) / (draws @ found.words_U)
        ),
    }


def by_band(found: Table, after: str, before: str) -> dict[str, dict[str, Any]]:
    """The same in every age band, the youngest first."""
    rows = {}
    for band in AGE_BANDS:
        inside = found.bands_U == band
        if not inside.any():
            continue
        part = Table(
            found.words_U[inside],
            found.bands_U[inside],
            {name: e[inside] for name, e in found.errors.items()},
            {name: e[inside] for name, e in found.by_test.items()},
        )
        rows[band] = {
            "speakers": int(inside.sum()),
            "before": wer(part, before),
            "after": wer(part, after),
            **reduction(part, after, before),
        }
    return rows


def share_worse(found: Table, after: str, before: str) -> dict[str, float]:
    """Share of speakers with more errors, and with so many more that a paired interval excludes 0."""
    difference = found.by_test[after] - found.by_test[before]
    draws = _draws(difference.shape[1])
    low = np.quantile(difference @ draws.T, (1 - _LEVEL) / 2, axis=1)
    return {"any": float((difference.sum(1) > 0).mean()), "significant": float((low > 0).mean())}


@functools.lru_cache(maxsize=256)
def _draws(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(float)


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return {
        "value": round(float(value), 5),
        "low": round(float(low), 5),
        "high": round(float(high), 5),
    }
