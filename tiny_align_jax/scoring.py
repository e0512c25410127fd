"""Scores of several systems on the same utterances: by normaliser, by speaker group, with intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiny_align_jax import registry
from tiny_align_jax.data.splits import AGE_BANDS, age_band
from tiny_align_jax.metrics import _bootstrap, _normalizers
from tiny_align_jax.types import Utterance

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compute.

    Attributes:
        metrics: plug-ins of the family `metrics`.
        normalizers: each applied to references and hypotheses alike.
        level: coverage of the intervals.
        num_resamples: bootstrap replicates.
        seed: of the resampling.
    """

    metrics: tuple[str, ...] = ("wer", "rouge")
    normalizers: tuple[str, ...] = tuple(_normalizers.NORMALIZERS)
    level: float = 0.95
    num_resamples: int = 1000
    seed: int = 0


def groups(utterances: Sequence[Utterance]) -> dict[str, np.ndarray]:
    """Indices of all utterances, of each age band and of each sex that occurs.

    A grouping with one value only would repeat the row of all, so it is left out.
    """
    bands = [age_band(u.age) for u in utterances]
    sexes = [u.sex or "unknown" for u in utterances]
    found = {ALL: np.arange(len(utterances))}
    for label, values, order in (("age", bands, AGE_BANDS), ("sex", sexes, ("f", "m", "unknown"))):
        present = [v for v in order if v in values]
        if len(present) > 1:
            for value in present:
                found[f"{label} {value}"] = np.flatnonzero(np.array(values) == value)
    return found


def score(
    config: Config,
    utterances: Sequence[Utterance],
    systems: Mapping[str, Sequence[str]],
    pairs: Sequence[tuple[str, str]] = (),
) -> dict[str, dict[str, Any]]:
    """Scores of all systems and paired differences between some, by normaliser.

    Args:
        config: what to compute.
        utterances: with reference texts and speakers.
        systems: hypotheses by system name, in the order of the utterances.
        pairs: (a, b): also the difference a less b, on the same resampled speakers.

    Returns:
        `[normaliser]['scores'][system][group]` -> number of utterances and speakers, and by metric
        value, low and high; `[normaliser]['differences']['a - b']` -> by metric the same three.
    """
    members = groups(utterances)
    speakers = [u.speaker_id for u in utterances]
    found: dict[str, dict[str, Any]] = {}
    for normalizer in config.normalizers:
        statistics = _all_statistics(config, normalizer, utterances, systems)
        scores = {
            system: {g: _row(config, columns, speakers, index) for g, index in members.items()}
            for system, columns in statistics.items()
        }
        gaps = {
            f"{a} - {b}": _difference(config, statistics[a], statistics[b], speakers)
            for a, b in pairs
        }
        found[normalizer] = {"scores": scores, "differences": gaps}
    return found


def _all_statistics(
    config: Config,
    normalizer: str,
    utterances: Sequence[Utterance],
    systems: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """`[system][metric plug-in]` -> statistics of every utterance."""
    references = [u.text for u in utterances]
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {system: {} for system in systems}
    for name in config.metrics:
        module = registry.resolve("metrics", name)
        metric_config = registry.make_config(module, {"normalizer": normalizer})
        for system, texts in systems.items():
            found[system][name] = module.per_utterance(metric_config, references, texts)
    return found


def _row(
    config: Config,
    statistics: Mapping[str, Mapping[str, np.ndarray]],
    speakers: Sequence[str],
    index: np.ndarray,
) -> dict[str, Any]:
    """One system on one group of utterances."""
    members = [speakers[int(i)] for i in index]
    row: dict[str, Any] = {"num_utterances": len(index), "num_speakers": len(set(members))}
    for name, columns in statistics.items():
        found = _bootstrap.intervals(
            {key: column[index] for key, column in columns.items()},
            registry.resolve("metrics", name).from_totals,
            members,
            **_settings(config),
        )
        row |= {metric: _plain(interval) for metric, interval in found.items()}
    return row


def _difference(
    config: Config,
    statistics_a: Mapping[str, Mapping[str, np.ndarray]],
    statistics_b: Mapping[str, Mapping[str, np.ndarray]],
    speakers: Sequence[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in config.metrics:
        from_totals = registry.resolve("metrics", name).from_totals
        found = _bootstrap.paired_differences(
            statistics_a[name], statistics_b[name], from_totals, speakers, **_settings(config)
        )
        row |= {metric: _plain(interval) for metric, interval in found.items()}
    return row


def _settings(config: Config) -> dict[str, Any]:
    return {
        "level": config.level,
        "num_resamples": config.num_resamples,
        "seed": config.seed,
    }


def _plain(interval: _bootstrap.Interval) -> dict[str, Any]:
    rounded = {key: round(getattr(interval, key), 5) for key in ("value", "low", "high")}
    return {**rounded, "resampled": interval.unit}
