"""First phase of the study: everything is tried on simulated users, and what is best is written down."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tiny_align_jax.adapt import crew as crew_lib
from tiny_align_jax.adapt import fit, study, study_reading, study_scores, word_prior
from tiny_align_jax.adapt.study_run import CONTROL, Config, Ground, Notes
from tiny_align_jax.types import ConfigError

FILE = "chosen.json"
EVERYBODYS, OWN, RELATED, OTHERS = "everybody's", "own", "own and related", "other's and related"
_PRIOR_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
TOLERANCES = (0.0, 0.1, 0.2, 0.5)
STEPS = "steps_per_checkpoint"  # of what was chosen
_COPIES = 3  # whose mean is tried


@dataclasses.dataclass
class Phase:
    """What the parts of the phase share.

    Attributes:
        ground: users and sentences.
        config: how much to do.
        notes: the study's file.
        own: a job a user and fold.
        other: the same, learning from another user.
        num_words: reference words of those jobs.
        chosen: what has been chosen so far.
    """

    ground: Ground
    config: Config
    notes: Notes
    own: crew_lib.Plan
    other: crew_lib.Plan
    num_words: int
    chosen: dict[str, Any]

    def wer(self, errors: np.ndarray) -> float:
        """Pooled over all jobs."""
        return round(float(errors.sum() / self.num_words), 5)


def run(
    ground: Ground, points: Sequence[study.Point], config: Config, folder: str | os.PathLike
) -> dict[str, Any]:
    """Tries everything on simulated users; writes study.json and chosen.json.

    Returns:
        contents of chosen.json.
    """
    lab, notes = ground.lab, Notes(folder, "choose")
    own, other = (
        crew_lib.plan(lab.crew, folds=config.folds, seeds=(0,), control=shift)
        for shift in (0, CONTROL)
    )
    num_words = int(study_scores.words_of(lab.references(own)).sum())
    chosen: dict[str, Any] = {"prior": 0.0, "weights": {}, "acoustic": None}
    phase = Phase(ground, config, notes, own, other, num_words, chosen)
    notes.write("users", {"speakers": len(lab.crew.speakers), "jobs": len(own), "words": num_words})
    base = lab.hear(own)
    notes.write("base", phase.wer(lab.errors(own, base)))
    parts = (
        ("word prior", lambda: _prior(phase)),
        ("reading", lambda: _reading(phase, base)),
        ("acoustics", lambda: _acoustics(phase, points)),
    )
    for name, part in parts:  # written as it goes: the last part may be cut short
        notes.part(name, part)
        (Path(folder) / FILE).write_text(json.dumps(chosen, indent=1, default=float) + "\n")
    notes.write("chosen", chosen)
    return chosen


def join(folders: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """chosen.json of a first phase that was divided by methods: words and reading of the first folder, the best method of all."""
    files = [Path(folder) / FILE for folder in folders]
    found = [json.loads(file.read_text()) for file in files if file.is_file()]
    if not found:
        raise ConfigError(
            f"no first phase in {', '.join(map(str, folders))}: run it with --dev_base"
        )
    helped = [f["acoustic"] for f in found if f["acoustic"]]
    best = min(helped, key=lambda acoustic: acoustic["gain"]) if helped else None
    return {**found[0], "acoustic": best}


def sizes(chosen: Mapping[str, Any], given: fit.Config) -> fit.Config:
    """Sizes of runs with the steps that the method was chosen with."""
    steps = (chosen["acoustic"] or {}).get(STEPS, given.steps_per_checkpoint)
    return dataclasses.replace(given, steps_per_checkpoint=steps)


def _prior(phase: Phase) -> None:
    """Weight of the word prior in greedy reading."""
    lab, found = phase.ground.lab, {}
    for weight in _PRIOR_WEIGHTS:
        how = word_prior.Config(weight=weight)
        own, control = (
            phase.wer(lab.errors(plan, lab.hear(plan, prior=how)))
            for plan in (phase.own, phase.other)
        )
        found[str(weight)] = {"own": own, "control": control}
    phase.notes.write("word prior, greedy, by weight", found)
    best = min(found, key=lambda weight: found[weight]["own"])
    if found[best]["own"] < phase.notes.entries["base"]:
        phase.chosen["prior"] = float(best)


def _reading(phase: Phase, base: fit.Heard) -> None:
    """Weights of the LLM behind every kind of context, without and with the word prior in the lists."""
    if base.top_rows_JSAK is None or phase.ground.lab.crew.base.llm is None:
        phase.notes.write("reading with the LLM", "no LLM, or an objective without probabilities")
        return
    _tune(phase, base, "")
    if phase.chosen["prior"]:
        how = word_prior.Config(weight=phase.chosen["prior"])
        _tune(phase, phase.ground.lab.hear(phase.own, prior=how), ", words")


def _tune(phase: Phase, heard: fit.Heard, tag: str) -> None:
    ground, own, other = phase.ground, phase.own, phase.other
    best = study_reading.n_best(ground.lab.crew, own, heard, phase.config.num_best, ground.grams)
    contexts: dict[str, Callable[[int], Sequence[str]]] = {
        EVERYBODYS: lambda job: ground.generic,
        OWN: lambda job: ground.lines(own, job, related=False),
        RELATED: lambda job: ground.lines(own, job),
        OTHERS: lambda job: ground.lines(other, job),
    }
    said = {"no LLM": [[np.zeros(len(b.texts)) for b in bests] for bests in best]}
    for name, lines in contexts.items():
        said[name] = study_reading.judge(ground.lab.crew, own, {"": best}, lines)[""]
    found: dict[str, Any] = {"oracle": phase.wer(study_reading.oracle(best)), "contexts": {}}
    for name, scores in said.items():
        weights = study_reading.tune(best, scores)
        errors = study_reading.errors_at(best, scores, weights)
        found["contexts"][name] = {"wer": phase.wer(errors), **dataclasses.asdict(weights)}
        phase.chosen["weights"][name + tag] = dataclasses.asdict(weights)
    weights = study_reading.Weights(**phase.chosen["weights"][RELATED + tag])
    control = study_reading.errors_at(best, said[OTHERS], weights)
    found["control at own weights"] = phase.wer(control)
    phase.notes.write(f"reading with the LLM{tag}", found)


def _acoustics(phase: Phase, points: Sequence[study.Point]) -> None:
    """All points in order until the time is up; the best methods against their controls."""
    began_s, best = time.monotonic(), {}
    for point in points:
        if time.monotonic() - began_s > phase.config.budget_s:
            logging.warning("out of time before %s", point)
            phase.notes.append("points", {"point": str(point), "skipped": "out of time"})
            continue
        row = phase.notes.part(str(point), lambda p=point: _point(phase, p, points))
        if row and row["gain"] < best.get(point.name, (0, 0.0))[1]:
            stop = dataclasses.replace(point, checkpoint=row["checkpoint"])
            best[point.name] = (stop, row["gain"])
    finalists = sorted(best.values(), key=lambda b: b[1])[: phase.config.finalists]
    for point, _ in finalists:
        phase.notes.part(f"final {point}", lambda p=point: _final(phase, p, points))


def _point(phase: Phase, point: study.Point, points) -> dict[str, Any]:
    lab = phase.ground.lab
    row = study.describe(lab, point, phase.own, lab.run(point, points, phase.own))
    # To the end: a copy stopped on its way has not had its rate lowered, and the best of five looks is luck. What
    # stood out after 12 steps of 1e-3 (0.291 for 0.319) was 0.315 when it learnt from three utterances more.
    curve = row["wer_by_checkpoint"]
    row["checkpoint"] = len(curve) - 1
    row["gain"] = curve[-1] - curve[0]
    phase.notes.append("points", row)
    return row


def _final(phase: Phase, point: study.Point, points) -> None:
    """A method's best point: its control, trained on the validation utterances as well, and the mean of copies."""
    lab, words = phase.ground.lab, phase.num_words
    once, whole = (
        crew_lib.plan(lab.crew, folds=phase.config.folds, seeds=seeds, validate=False)
        for seeds in ((0,), range(_COPIES))
    )
    kept_back, others, copies = (
        lab.run(point, points, plan) for plan in (phase.own, phase.other, whole)
    )
    by_copies = {
        1: [copies.of_seed(i, _COPIES) for i in range(_COPIES)],
        _COPIES: [lab.mean_of_seeds(once, copies)],
    }

    def wer(outcomes) -> float:
        return float(np.mean([o.errors_CJN[-1].sum() for o in outcomes]) / words)

    checked = {
        (count, tolerance): wer([o.guarded(kept_back, tolerance) for o in outcomes])
        for count, outcomes in by_copies.items()
        for tolerance in TOLERANCES
    }
    count, tolerance = min(checked, key=lambda how: (checked[how], how))
    row = {
        "point": str(point),
        "checkpoint": point.checkpoint,
        "base": kept_back.errors_CJN[0].sum() / words,
        "own": wer([kept_back]),
        "control": wer([others]),
        "own, all utterances": wer(by_copies[1]),
        "own, all utterances, mean of copies": wer(by_copies[_COPIES]),
        "checked": {f"{c} copies, tolerance {t:g}": value for (c, t), value in checked.items()},
        "by_job": {
            "own": study.by_job(kept_back),
            "control": study.by_job(others),
            "own, all utterances": study.by_job(copies),
            "mean of copies": study.by_job(by_copies[_COPIES][0]),
        },
    }
    phase.notes.append("finalists", row)
    gain = float(checked[count, tolerance] - row["base"])
    if gain < min(0.0, (phase.chosen["acoustic"] or {}).get("gain", 0.0)):
        kept = ("name", "learning_rate", "replay_weight", "decay", "checkpoint")
        how = {
            "tolerance": tolerance,
            "copies": count,
            STEPS: kept_back.spec.config.steps_per_checkpoint,
        }
        phase.chosen["acoustic"] = {**{k: getattr(point, k) for k in kept}, **how, "gain": gain}
