"""Bootstrap intervals over clusters: utterances of one speaker are not independent.

Resamples speakers with replacement where enough are known, else utterances (with two speakers a
replicate has three outcomes, and the interval would be absurdly narrow). Every replicate is a sum
of sufficient statistics, so a thousand of them are one matrix product.
Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance
evaluation"; percentile intervals.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tiny_align_jax.types import ConfigError

MIN_SPEAKERS = 5

Statistics = Mapping[str, np.ndarray]
FromTotals = Callable[[Statistics], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score with its interval.

    Attributes:
        value: score of the whole sample.
        low: lower percentile of the replicates.
        high: upper percentile.
        unit: what was resampled, 'speaker' or 'utterance'.
        num_units: how many of them there are.
    """

    value: float
    low: float
    high: float
    unit: str
    num_units: int


def intervals(
    statistics: Statistics,
    from_totals: FromTotals,
    speakers: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Scores and percentile intervals.

    Args:
        statistics: what a metric's `per_utterance` returns, [num_utterances] each.
        from_totals: the metric's `from_totals`.
        speakers: speaker of every utterance; None, or fewer than MIN_SPEAKERS of them: utterances are
            resampled.
        level: coverage, e.g. 0.95.
        num_resamples: replicates.
        seed: of the resampling; the same seed and sample give the same interval.

    Raises:
        ConfigError: no utterances, or lengths that differ.
    """
    units, unit = _units(statistics, speakers)
    value = from_totals({key: column.sum() for key, column in units.items()})
    replicates = from_totals(_replicates(units, num_resamples, seed))
    num_units = len(next(iter(units.values())))
    return {
        name: Interval(float(value[name]), *_percentiles(draws, level), unit, num_units)
        for name, draws in replicates.items()
    }


def paired_differences(
    statistics_a: Statistics,
    statistics_b: Statistics,
    from_totals: FromTotals,
    speakers: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Score of system a less score of system b on the same utterances, same draws for both.

    The difference is real at `level` where the interval leaves out zero.

    Raises:
        ConfigError: the systems were scored on different numbers of utterances.
    """
    units_a, unit = _units(statistics_a, speakers)
    units_b, _ = _units(statistics_b, speakers)
    num_units = len(next(iter(units_a.values())))
    if num_units != len(next(iter(units_b.values()))):
        raise ConfigError("a paired comparison needs both systems on the same utterances")
    scores = []
    for units in (units_a, units_b):
        value = from_totals({key: column.sum() for key, column in units.items()})
        scores.append((value, from_totals(_replicates(units, num_resamples, seed))))
    (value_a, draws_a), (value_b, draws_b) = scores
    return {
        name: Interval(
            float(value_a[name] - value_b[name]),
            *_percentiles(draws_a[name] - draws_b[name], level),
            unit,
            num_units,
        )
        for name in value_a
    }


def _units(
    statistics: Statistics, speakers: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], str]:
    """Statistics summed within each resampling unit, [num_units] each, and the unit's name."""
    lengths = {key: len(column) for key, column in statistics.items()}
    if not lengths or 0 in lengths.values():
        raise ConfigError("cannot bootstrap: there is no utterance to resample")
    if speakers is None or len(set(speakers)) < MIN_SPEAKERS:
        return dict(statistics), "utterance"
    if set(lengths.values()) != {len(speakers)}:
        raise ConfigError(f"{len(speakers)} speakers for statistics of lengths {lengths}")
    _, speaker_index = np.unique(np.asarray(speakers), return_inverse=True)
    return {k: np.bincount(speaker_index, weights=v) for k, v in statistics.items()}, "speaker"


def _replicates(units: Statistics, num_resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Totals of resampled units, [num_resamples] each."""
    num_units = len(next(iter(units.values())))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)
    return {key: counts @ column for key, column in units.items()}


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
