"""Second phase of the study: what was chosen on simulated users, once, on the test users.

Systems, every one of them also as the control, which learns from another user:
    base                 greedy reading
    base + LLM           n-best texts judged behind training sentences: what everybody gets
    words                the user's word prior
    sentences            n-best texts of the base, judged behind the user's own sentences
    acoustic             the adapted copy, greedy
    all                  the adapted copy's n-best texts with the word prior, judged behind the sentences
Without a method that helped on simulated users, 'acoustic' is the base.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiny_align_jax.adapt import crew as crew_lib
from tiny_align_jax.adapt import study, study_reading, study_scores, word_prior
from tiny_align_jax.adapt.study_choose import EVERYBODYS, RELATED
from tiny_align_jax.adapt.study_run import CONTROL, Config, Ground, Notes

BASE, LLM = "base", "base + LLM"
WORDS, SENTENCES, ACOUSTIC, ALL = "words", "sentences", "acoustic", "all"
_CONTROL_TAG = ", other's"
_PAIRS = (
    (WORDS, BASE),
    (ACOUSTIC, BASE),
    (LLM, BASE),
    (SENTENCES, BASE),
    (SENTENCES, LLM),
    (ALL, BASE),
    (ALL, LLM),
    *((name, name + _CONTROL_TAG) for name in (WORDS, ACOUSTIC, SENTENCES, ALL)),
)

Errors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the first phase chose.

    Attributes:
        point: the acoustic method, None if none helped.
        prior: the word prior in greedy reading, None if it did not help.
        weights: of the LLM, by context.
    """

    point: study.Point | None
    prior: word_prior.Config | None
    weights: Mapping[str, study_reading.Weights]

    @classmethod
    def of(cls, chosen: Mapping[str, Any], points: Sequence[study.Point]) -> "Choice":
        """From the contents of chosen.json."""
        found = chosen["acoustic"]
        point = None
        if found:
            values = {k: v for k, v in found.items() if k not in ("name", "gain")}
            method = next(p.method for p in points if p.name == found["name"])
            point = study.Point(found["name"], method, **values)
        prior = word_prior.Config(weight=chosen["prior"]) if chosen["prior"] else None
        weights = {k: study_reading.Weights(**v) for k, v in chosen["weights"].items()}
        return cls(point, prior, weights)

    def weights_of(self, context: str) -> study_reading.Weights:
        """With the prior's, where it stands in the lists."""
        return self.weights[context + (", words" if self.prior else "")]


def run(
    ground: Ground, choice: Choice, config: Config, folder: str | os.PathLike
) -> dict[str, Any]:
    """Scores the test users; writes study.json.

    Returns:
        entries of the phase.
    """
    notes, lab = Notes(folder, "test"), ground.lab
    own = crew_lib.plan(lab.crew, folds=config.folds, seeds=config.seeds)
    words = study_scores.words_of(lab.references(own))
    ages = [
        next(u.age for u in lab.crew.utterances if u.speaker_id == name)
        for name in lab.crew.speakers
    ]
    notes.write("users", {"speakers": list(lab.crew.speakers), "ages": ages, "jobs": len(own)})
    errors: Errors = {}
    for tag, shift in (("", 0), (_CONTROL_TAG, CONTROL)):
        notes.part(
            f"systems{tag}", lambda s=shift, t=tag: _systems(ground, choice, config, s, t, errors)
        )
    found = study_scores.table(own.speaker_J, ages, words, errors)
    notes.part("scores", lambda: write_scores(notes, found))
    for size in config.sizes if errors else ():
        notes.part(
            f"{size} utterances",
            lambda n=size: _by_size(ground, choice, config, n, notes),
        )
    return notes.entries


def write_scores(notes: Notes, found: study_scores.Table) -> None:
    """All systems, all pairs, bands of the main pair, and every speaker's errors for the pictures."""
    notes.write("wer", {name: study_scores.wer(found, name) for name in found.errors})
    pairs = [(a, b) for a, b in _PAIRS if a in found.errors and b in found.errors]
    notes.write("reductions", {f"{a} | {b}": study_scores.reduction(found, a, b) for a, b in pairs})
    for after, before in ((ALL, BASE), (ALL, LLM), (SENTENCES, LLM), (ACOUSTIC, BASE)):
        if after in found.errors and before in found.errors:
            notes.write(f"bands, {after} | {before}", study_scores.by_band(found, after, before))
            notes.write(
                f"worse, {after} | {before}", study_scores.share_worse(found, after, before)
            )
    notes.write("errors by speaker", {name: e.tolist() for name, e in found.errors.items()})
    notes.write("words by speaker", found.words_U.tolist())


def _systems(ground: Ground, choice: Choice, config: Config, shift: int, tag: str, errors: Errors):
    """Fills in the word errors of all systems that learn from the users `shift` places on."""
    lab = ground.lab
    plan = crew_lib.plan(lab.crew, folds=config.folds, seeds=config.seeds, control=shift)
    base = lab.hear(plan)
    greedy = lab.errors(plan, base)
    with_words = lab.hear(plan, prior=choice.prior) if choice.prior else base
    copies = _copies(lab, choice, config, shift)
    heard = lab.hear(plan, copies) if copies else base
    errors |= {BASE: greedy, WORDS + tag: lab.errors(plan, with_words)}
    errors[ACOUSTIC + tag] = lab.errors(plan, heard)
    if base.top_rows_JSAK is None or lab.crew.base.llm is None:
        return
    both = lab.hear(plan, copies, choice.prior) if copies else with_words
    lists = {
        name: study_reading.n_best(lab.crew, plan, h, config.num_best)
        for name, h in ((LLM, base), (SENTENCES, with_words), (ALL, both))
    }
    said = study_reading.judge(lab.crew, plan, lists, lambda job: ground.lines(plan, job))
    for name in (SENTENCES, ALL):
        weights = choice.weights_of(RELATED)
        errors[name + tag] = study_reading.errors_at(lists[name], said[name], weights)
    if not shift:
        first = {LLM: lists[LLM]}
        everybodys = study_reading.judge(lab.crew, plan, first, lambda job: ground.generic)
        errors[LLM] = study_reading.errors_at(
            lists[LLM], everybodys[LLM], choice.weights[EVERYBODYS]
        )


def _copies(lab: study.Lab, choice: Choice, config: Config, shift: int, size: int = 0):
    """Adapted copies: trained on all utterances, kept where a copy without the validation ones got better."""
    if choice.point is None:
        return None
    ran = []
    for validate in (True, False):
        plan = crew_lib.plan(
            lab.crew,
            folds=config.folds,
            seeds=config.seeds,
            control=shift,
            validate=validate,
            num_adapt=size,
        )
        ran.append(lab.run(choice.point, [choice.point], plan))
    return ran[1].guarded(ran[0])


def _by_size(ground: Ground, choice: Choice, config: Config, size: int, notes: Notes) -> None:
    """'acoustic', 'sentences' and 'all' from fewer utterances, first seed; few are all learnt from unchecked."""
    lab = ground.lab
    plan = crew_lib.plan(
        lab.crew, folds=config.folds, seeds=config.seeds[:1], validate=False, num_adapt=size
    )
    words = study_scores.words_of(lab.references(plan)).sum()
    copies = lab.run(choice.point, [choice.point], plan) if choice.point else None
    row = {}
    if copies:
        row[ACOUSTIC] = copies.errors_CJN[-1].sum() / words
    with_words = lab.hear(plan, prior=choice.prior)
    if with_words.top_rows_JSAK is not None and lab.crew.base.llm is not None:
        both = lab.hear(plan, copies, choice.prior) if copies else with_words
        lists = {
            name: study_reading.n_best(lab.crew, plan, heard, config.num_best)
            for name, heard in ((SENTENCES, with_words), (ALL, both))
        }
        said = study_reading.judge(lab.crew, plan, lists, lambda job: ground.lines(plan, job))
        for name in lists:
            weights = choice.weights_of(RELATED)
            row[name] = study_reading.errors_at(lists[name], said[name], weights).sum() / words
    notes.write(f"wer from {size} utterances", {name: float(w) for name, w in row.items()})
