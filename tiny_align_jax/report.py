"""What a sweep found: rows of equal points, scores with intervals, paired comparisons.

Two intervals stand side by side because they answer different questions: over seeds (would training
again give the same?) and over speakers (would other speakers give the same?).
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tiny_align_jax import evaluate, registry, sweep_run
from tiny_align_jax.metrics import _bootstrap
from tiny_align_jax.train import logs, run
from tiny_align_jax.types import ConfigError, DataError

METRICS = {"wer": "wer", "cer": "wer", "rouge1": "rouge", "rougeL": "rouge"}  # name -> plug-in
LOWER_IS_BETTER = ("wer", "cer")
NORMALIZER = "whisper_english"
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Entry:
    """One point of a sweep, as its folder has it.

    Attributes:
        name: folder.
        row: points of one row are repetitions of each other.
        seed: of training.
        status: how it ended.
        error: why, if it did not finish.
        result: contents of train_result.json, {} if it was not trained.
        runs_before: trainings of the same process before it; its peak memory may be theirs.
        validation: (step, scores) during training.
        losses: (step, loss).
        predictions: lines of the scored predictions, () if not scored.
        clock: training seconds at each validated step, where they were logged.
        system: the column of the predictions that counts.
        labels: of the point on every axis.
        index: number of the point in its sweep.
    """

    name: str
    row: str
    seed: int
    status: str
    error: str
    result: Mapping[str, Any]
    runs_before: int
    validation: tuple[tuple[int, Mapping[str, float]], ...]
    losses: tuple[tuple[int, float], ...]
    predictions: tuple[Mapping[str, Any], ...]
    clock: Mapping[int, float]
    system: str
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    index: int = 0

    @functools.cached_property
    def scores(self) -> dict[str, float]:
        """Scores of the predictions, else the last validation scores of training."""
        if not self.predictions:
            known = self.result.get("validation", {})
            return {name: known[name] for name in METRICS if name in known}
        found: dict[str, float] = {}
        for plugin in dict.fromkeys(METRICS.values()):
            totals = {k: v.sum() for k, v in self.statistics[plugin].items()}
            found |= {k: float(v) for k, v in _from_totals(plugin)(totals).items()}
        return {name: found[name] for name in METRICS}

    @functools.cached_property
    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Sufficient statistics of every utterance by metric plug-in, in order of utterance ids."""
        ordered = sorted(self.predictions, key=lambda line: line["id"])
        truths = [line["reference"] for line in ordered]
        texts = [line[self.system] for line in ordered]
        found = {}
        for plugin in dict.fromkeys(METRICS.values()):
            module = registry.resolve("metrics", plugin)
            config = module.Config(normalizer=NORMALIZER)
            found[plugin] = module.per_utterance(config, truths, texts)
        return found

    @property
    def speakers(self) -> list[str]:
        """Speaker of every utterance, in the order of `statistics`."""
        return [line["speaker"] for line in sorted(self.predictions, key=lambda line: line["id"])]

    def seconds(self, step: int) -> float:
        """Training seconds until `step`, compilation and validation left out; as logged, if they were."""
        if step in self.clock and not self.result.get("timed_from_step", 0):
            return self.clock[step]
        timed = self.result["step"] - self.result.get("timed_from_step", 0)
        return self.result["train_s"] * step / max(timed, 1)


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric of one row.

    Attributes:
        mean: over seeds.
        half_width: of the interval of the mean over seeds (Student's t); None for one seed.
        speakers: bootstrap interval over speakers, all seeds together; None without predictions.
    """

    mean: float
    half_width: float | None
    speakers: _bootstrap.Interval | None


@dataclasses.dataclass(frozen=True)
class Row:
    """Points that differ by seed alone.

    Attributes:
        name: labels of the axes.
        entries: finished ones.
        unfinished: the others.
        scores: by metric.
    """

    name: str
    entries: tuple[Entry, ...]
    unfinished: tuple[Entry, ...]
    scores: Mapping[str, Score]

    def mean(self, value: Callable[[Entry], float | None]) -> float | None:
        """Mean of a number over the finished points that have it."""
        found = [x for e in self.entries if (x := value(e)) is not None]
        return float(np.mean(found)) if found else None

    @property
    def params(self) -> float | None:
        """Trainable parameters."""
        return self.mean(lambda e: e.result.get("trainable_params"))

    @property
    def train_s(self) -> float | None:
        """Seconds of training, compilation left out."""
        return self.mean(lambda e: e.result.get("train_s"))

    @property
    def lanes(self) -> int:
        """Runs that shared the seconds of the row's runs, see `train.lanes`; 1 where each ran alone."""
        return max((e.result.get("lanes", 1) for e in self.entries), default=1)

    @property
    def peak_mb(self) -> tuple[float | None, bool]:
        """Peak memory (device, else host), and whether it is only a bound: an earlier run's peak."""
        if not self.entries:
            return None, False
        fresh = [e for e in self.entries if not e.runs_before]
        peaks = [_peak(e.result) for e in fresh or self.entries]
        known = [p for p in peaks if p is not None]
        return (max(known) if known else None), not fresh


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Row a against row b on the same utterances, the same speakers drawn for both.

    Attributes:
        difference: score of a less score of b, with its interval.
        ratio: score of a over score of b, with its interval; None where a draw had a score of zero.
        significant: whether the difference's interval leaves out zero.
    """

    difference: _bootstrap.Interval
    ratio: tuple[float, float, float] | None
    significant: bool


def load(workdir: Path, scoring: str = "", systems: Sequence[str] = ("",)) -> tuple[list[Row], str]:
    """Rows of a sweep's folder, and which scoring they show ('' for validation while training).

    Args:
        workdir: of the sweep.
        scoring: as in point.json, e.g. 'test/answer'; '' for the one that most points have.
        systems: columns of the predictions, a row each ('heard', 'answer', 'oracle'); '' for the one
            that counts: the answer where the LLM was asked, else the reading.

    Raises:
        DataError: no points there.
        ConfigError: no point has that scoring.
    """
    paths = sorted(Path(workdir).glob(f"*/{sweep_run.POINT_FILE}"))
    if not paths:
        raise DataError(
            f"{workdir} holds no points; run `python -m experiments.sweep` into it first"
        )
    points = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    known = [name for point in points for name in point.get("scored", {})]
    if scoring and scoring not in known:
        there = ", ".join(sorted(set(known))) or "none"
        raise ConfigError(f"no point was scored as {scoring!r}; scorings there: {there}")
    chosen = scoring or max(sorted(set(known)), key=known.count, default="")
    # The order of the sweep, not of the alphabet.
    pairs = sorted(zip(paths, points, strict=True), key=lambda pair: pair[1].get("index", 0))
    by_row: dict[str, list[Entry]] = {}
    for path, point in pairs:
        for system in systems:
            entry = _entry(path.parent, point, chosen, system)
            by_row.setdefault(entry.row, []).append(entry)
    return [make_row(name, members) for name, members in by_row.items()], chosen


def make_row(name: str, entries: Sequence[Entry]) -> Row:
    """Scores of the finished entries with their intervals."""
    done = tuple(e for e in entries if e.status == sweep_run.FINISHED)
    rest = tuple(e for e in entries if e.status != sweep_run.FINISHED)
    shared = [m for m in METRICS if done and all(m in e.scores for e in done)]
    return Row(name, done, rest, {m: _score(done, m) for m in shared})


def best_of(rows: Sequence[Row], axis: str, metric: str) -> list[Row]:
    """Of rows that differ on one axis alone, the one with the best score; all others as they are.

    For an axis that is searched, not compared, such as the learning rate; scores must be of validation
    speakers.
    """
    sign = 1 if metric in LOWER_IS_BETTER else -1
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        entry = (*row.entries, *row.unfinished)[0]
        others = tuple((k, v) for k, v in entry.labels.items() if k not in (axis, "seed"))
        groups.setdefault((others, entry.system), []).append(row)

    def rank(row: Row) -> float:
        return sign * row.scores[metric].mean if metric in row.scores else math.inf

    return [min(members, key=rank) for members in groups.values()]


def compare(a: Row, b: Row) -> dict[str, Comparison]:
    """Paired comparison by metric; statistics are averaged over each row's seeds first.

    Raises:
        DataError: a row has no predictions, or they are of different utterances.
    """
    for row in (a, b):
        if not row.entries or not all(e.predictions for e in row.entries):
            raise DataError(
                f"row {row.name!r} has no predictions to compare; score its points first"
            )
    ids = {tuple(sorted(line["id"] for line in e.predictions)) for e in (*a.entries, *b.entries)}
    if len(ids) != 1:
        raise DataError(f"rows {a.name!r} and {b.name!r} were scored on different utterances")
    found = {}
    speakers = a.entries[0].speakers
    for metric, plugin in METRICS.items():
        from_totals = _only(metric, _from_totals(plugin))
        pair = _mean_statistics(a, plugin), _mean_statistics(b, plugin)
        gap = _bootstrap.paired_differences(*pair, from_totals, speakers, level=LEVEL)[metric]
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = lambda t, f=from_totals: {k: np.log(v) for k, v in f(t).items()}  # noqa: E731
            ratio = _bootstrap.paired_differences(*pair, logarithm, speakers, level=LEVEL)[metric]
            value, low, high = (float(np.exp(x)) for x in (ratio.value, ratio.low, ratio.high))
            bounds = value, low, high
        finite = bool(np.isfinite(bounds).all())
        found[metric] = Comparison(gap, bounds if finite else None, gap.low > 0 or gap.high < 0)
    return found


def curve(row: Row, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, training seconds and mean score of a row's validations that all its seeds have."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for entry in row.entries:
        for step, scores in entry.validation:
            if metric in scores:
                by_step.setdefault(step, []).append((entry.seconds(step), scores[metric]))
    full = sorted(s for s, found in by_step.items() if len(found) == len(row.entries))
    means = np.array([np.mean(by_step[s], axis=0) for s in full]).reshape(-1, 2)
    return np.array(full), means[:, 0], means[:, 1]


def as_far_as_it_got(row: Row) -> Row:
    """A row of which no run finished, with those runs that were validated on their way; others as they are."""
    begun = tuple(e for e in row.unfinished if e.clock)
    return row if row.entries else dataclasses.replace(row, entries=begun)


def seconds_to_equal(
    a: Row, b: Row, metric: str = "wer"
) -> tuple[float, float, float | None] | None:
    """Time to equal score from the validations during training.

    Returns:
        b's best score, b's seconds to it, a's seconds to the same score (None if never); None if one of
        them was not validated on its way: the end of a run says nothing of when its score was reached.
    """
    sign = 1 if metric in LOWER_IS_BETTER else -1
    _, seconds_b, scores_b = curve(b, metric)
    _, seconds_a, scores_a = curve(a, metric)
    if min(len(scores_a), len(scores_b)) < 2:
        return None
    best = int(np.argmin(sign * scores_b))
    reached = np.flatnonzero(sign * scores_a <= sign * scores_b[best])
    time_a = float(seconds_a[reached[0]]) if len(reached) else None
    return float(scores_b[best]), float(seconds_b[best]), time_a


def find_row(rows: Sequence[Row], name: str) -> Row:
    """The row of that name, or the only one whose name contains it; ConfigError lists them all."""
    found = [r for r in rows if r.name == name] or [r for r in rows if name in r.name]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} rows match {name!r}; rows: {'; '.join(r.name for r in rows)}"
        )
    return found[0]


def _entry(folder: Path, point: Mapping[str, Any], scoring: str, system: str) -> Entry:
    result = folder / run.RESULT_FILE
    log = folder / logs.LOG_FILE
    lines = [json.loads(t) for t in log.read_text().splitlines()] if log.is_file() else []
    prefix = "validation/"
    predictions = _predictions(folder, point, scoring)
    if system and predictions and system not in predictions[0]:
        predictions = ()  # not asked for when this point was scored
    return Entry(
        name=point["name"],
        row=f"{point['row']} [{system}]" if system else point["row"],
        seed=point["config"]["seed"],
        status=point["status"],
        error=point.get("error", ""),
        result=json.loads(result.read_text()) if result.is_file() else {},
        runs_before=point.get("runs_before", 0),
        validation=tuple(
            (line["step"], {k.removeprefix(prefix): v for k, v in line.items() if prefix in k})
            for line in lines
            if any(prefix in k for k in line)
        ),
        losses=tuple((line["step"], line["loss"]) for line in lines if "loss" in line),
        predictions=predictions,
        clock={line["step"]: line["train_s"] for line in lines if "train_s" in line},
        system=system or _system(point, scoring),
        labels=point.get("labels", {}),
        index=point.get("index", 0),
    )


def _predictions(
    folder: Path, point: Mapping[str, Any], scoring: str
) -> tuple[dict[str, Any], ...]:
    files = point.get("scored", {}).get(scoring)
    if files is None:
        return ()
    text = (folder / files["predictions"]).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def _system(point: Mapping[str, Any], scoring: str) -> str:
    """The LLM's answer where it was asked for, or where nothing else was trained; else the reading."""
    objective = registry.resolve("objectives", point["config"]["objective"]["name"])
    asked = "/answer" in scoring or "llm" in objective.NEEDS
    return evaluate.ANSWER if asked else evaluate.HEARD


def _score(entries: Sequence[Entry], metric: str) -> Score:
    values = np.array([e.scores[metric] for e in entries])
    half = None
    if len(values) > 1:
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
        half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    speakers = None
    if all(e.predictions for e in entries):
        plugin = METRICS[metric]
        together = {
            key: np.concatenate([e.statistics[plugin][key] for e in entries])
            for key in entries[0].statistics[plugin]
        }
        who = [speaker for e in entries for speaker in e.speakers]
        from_totals = _from_totals(plugin)
        speakers = _bootstrap.intervals(together, from_totals, who, level=LEVEL)[metric]
    return Score(float(values.mean()), half, speakers)


def _mean_statistics(row: Row, plugin: str) -> dict[str, np.ndarray]:
    keys = row.entries[0].statistics[plugin]
    return {k: np.mean([e.statistics[plugin][k] for e in row.entries], axis=0) for k in keys}


def _from_totals(plugin: str) -> Callable[..., dict[str, np.ndarray]]:
    return registry.resolve("metrics", plugin).from_totals


def _only(metric: str, from_totals: Callable[..., dict[str, np.ndarray]]) -> Callable:
    return lambda totals: {metric: from_totals(totals)[metric]}


def _peak(result: Mapping[str, Any]) -> float | None:
    device = result.get("peak_device_mb")
    return device if device is not None else result.get("peak_rss_mb")
