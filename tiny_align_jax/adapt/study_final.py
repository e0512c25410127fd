"""Second phase of the study: what was chosen on simulated users, once, on the test users.

Systems, but for 'checked' every one also as the control, which learns from another user:
    base                 greedy reading
    base + LLM           n-best texts judged behind training sentences: what everybody gets
    words                the user's word prior
    sentences            n-best texts of the base, judged behind the user's own sentences
    acoustic             the adapted copy, or the mean of several, greedy; nothing checked
    copy                 each of several alone
    checked              the same with the base where its validation speaks against it
    acoustic and words   with the word prior
    all                  as 'sentences', with texts of 'acoustic and words'
Without a method that helped on simulated users, 'acoustic' is the base.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiny_align_jax.adapt import crew as crew_lib
from tiny_align_jax.adapt import fit, study, study_reading, study_scores, word_prior
from tiny_align_jax.adapt.study_choose import EVERYBODYS, RELATED, STEPS
from tiny_align_jax.adapt.study_run import CONTROL, Config, Ground, Notes

BASE, LLM = "base", "base + LLM"
WORDS, SENTENCES, ACOUSTIC, ALL = "words", "sentences", "acoustic", "all"
COPY, CHECKED, BOTH = "copy", "checked", "acoustic and words"
_CONTROL_TAG = ", other's"
_PAIRS = (
    (WORDS, BASE),
    (ACOUSTIC, BASE),
    (COPY, BASE),
    (CHECKED, BASE),
    (BOTH, BASE),
    (BOTH, ACOUSTIC),
    (LLM, BASE),
    (SENTENCES, BASE),
    (SENTENCES, LLM),
    (ALL, BASE),
    (ALL, LLM),
    (ALL, SENTENCES),
    *((name, name + _CONTROL_TAG) for name in (WORDS, ACOUSTIC, COPY, BOTH, SENTENCES, ALL)),
)

_BANDS = (
    (ALL, BASE),
    (ALL, LLM),
    (SENTENCES, LLM),
    (ACOUSTIC, BASE),
    (CHECKED, BASE),
    (ACOUSTIC, ACOUSTIC + _CONTROL_TAG),
)


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
            values = {k: v for k, v in found.items() if k not in ("name", "gain", STEPS)}
            method = next(p.method for p in points if p.name == found["name"])
            point = study.Point(found["name"], method, **values)
        prior = word_prior.Config(weight=chosen["prior"]) if chosen["prior"] else None
        weights = {k: study_reading.Weights(**v) for k, v in chosen["weights"].items()}
        return cls(point, prior, weights)

    def weights_of(self, context: str) -> study_reading.Weights:
        """With the prior's, where it stands in the lists."""
        return self.weights[context + (", words" if self.prior else "")]


@dataclasses.dataclass
class _Test:
    """What the stages share.

    Attributes:
        ground: users and sentences.
        choice: what was chosen on simulated users.
        config: how much to do.
        notes: the study's file.
        errors: word errors of every system so far, [J, tests] over users, folds and seeds.
        heard: what the lists of texts are made from, by system.
        copies: adapted, '' of the users' own and those of the control.
    """

    ground: Ground
    choice: Choice
    config: Config
    notes: Notes
    errors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    heard: dict[str, fit.Heard] = dataclasses.field(default_factory=dict)
    copies: dict[str, study.Outcome] = dataclasses.field(default_factory=dict)

    def plan(self, shift: int = 0, seeds: Sequence[int] | None = None, **kw) -> crew_lib.Plan:
        """Jobs of all users, folds and seeds (default: all)."""
        seeds = self.config.seeds if seeds is None else seeds
        crew, folds = self.ground.lab.crew, self.config.folds
        return crew_lib.plan(crew, folds=folds, seeds=seeds, control=shift, **kw)

    def once(self, shift: int = 0) -> crew_lib.Plan:
        """Jobs of one seed: what is not trained is the same for all of them."""
        return self.plan(shift, self.config.seeds[:1])

    def for_all_seeds(self, errors_JN: np.ndarray) -> np.ndarray:
        """Errors of one seed, repeated; seeds stand innermost."""
        return np.repeat(errors_JN, len(self.config.seeds), axis=0)


def run(
    ground: Ground, choice: Choice, config: Config, folder: str | os.PathLike
) -> dict[str, Any]:
    """Scores the test users; writes study.json, after every stage what there is by then.

    Returns:
        entries of the phase.
    """
    notes, lab = Notes(folder, "test"), ground.lab
    test = _Test(ground, choice, config, notes)
    own = test.plan()
    words = study_scores.words_of(lab.references(own))
    ages = [
        next(u.age for u in lab.crew.utterances if u.speaker_id == name)
        for name in lab.crew.speakers
    ]
    notes.write("users", {"speakers": list(lab.crew.speakers), "ages": ages, "jobs": len(own)})

    def score():
        write_scores(notes, study_scores.table(own.speaker_J, ages, words, test.errors))

    for name, stage in (("greedy", _greedy), ("read", _read)):
        for tag, shift in (("", 0), (_CONTROL_TAG, CONTROL)):
            notes.part(name + tag, lambda f=stage, s=shift, t=tag: f(test, s, t))
            notes.part("scores", score)
    notes.part("checked", lambda: _checked(test))
    notes.part("scores", score)
    for size in config.sizes:
        notes.part(f"{size} utterances", lambda n=size: _by_size(test, n))
    return notes.entries


def write_scores(notes: Notes, found: study_scores.Table) -> None:
    """All systems, all pairs, bands of the main pair, and every speaker's errors for the pictures."""
    notes.write("wer", {name: study_scores.wer(found, name) for name in found.errors})
    pairs = [(a, b) for a, b in _PAIRS if a in found.errors and b in found.errors]
    notes.write("reductions", {f"{a} | {b}": study_scores.reduction(found, a, b) for a, b in pairs})
    for after, before in _BANDS:
        if after in found.errors and before in found.errors:
            notes.write(f"bands, {after} | {before}", study_scores.by_band(found, after, before))
            notes.write(
                f"worse, {after} | {before}", study_scores.share_worse(found, after, before)
            )
    notes.write("errors by speaker", {name: e.tolist() for name, e in found.errors.items()})
    notes.write("words by speaker", found.words_U.tolist())


def _greedy(test: _Test, shift: int, tag: str) -> None:
    """Word errors of what is read without the LLM, by learning from the users `shift` places on."""
    lab, prior, once = test.ground.lab, test.choice.prior, test.once(shift)
    if not shift:
        test.heard[BASE] = lab.hear(once)
        test.errors[BASE] = test.for_all_seeds(lab.errors(once, test.heard[BASE]))
    with_words = lab.hear(once, prior=prior) if prior else test.heard[BASE]
    test.heard[SENTENCES + tag] = with_words
    test.errors[WORDS + tag] = test.for_all_seeds(lab.errors(once, with_words))
    if test.choice.point:
        _adapted(test, shift, tag)


def _adapted(test: _Test, shift: int, tag: str) -> None:
    """Greedy readings of copies that learnt from all utterances, and what is read further of them."""
    lab, point, once = test.ground.lab, test.choice.point, test.once(shift)
    assert point is not None
    plan, count = test.plan(shift, validate=False), len(test.config.seeds)
    copies = lab.run(point, [point], plan)
    row = study.describe(lab, point, plan, copies)
    test.notes.write(f"acoustic by checkpoint{tag or ', own'}", row)
    if point.copies > 1:
        test.errors[COPY + tag] = copies.errors_CJN[-1]
        used = one = lab.mean_of_seeds(once, copies)
        test.errors[ACOUSTIC + tag] = test.for_all_seeds(one.errors_CJN[-1])
    else:
        used, one = copies, copies.of_seed(0, count)
        test.errors[ACOUSTIC + tag] = copies.errors_CJN[-1]
    test.copies[tag] = used
    heard = lab.hear(once, one, test.choice.prior)  # one copy a user is read further
    test.heard[ALL + tag] = heard
    test.errors[BOTH + tag] = test.for_all_seeds(lab.errors(once, heard))


def _checked(test: _Test) -> None:
    """With the base wherever a copy of the first seed that leaves validation out got worse by it."""
    lab, point = test.ground.lab, test.choice.point
    if point is None or "" not in test.copies:
        return
    deciding = lab.run(point, [point], test.once())
    row = study.describe(lab, point, test.once(), deciding)
    test.notes.write("validated copies", row)
    copies, seeds = test.copies[""], len(test.config.seeds)
    if point.copies > 1:
        errors = test.for_all_seeds(copies.guarded(deciding, point.tolerance).errors_CJN[-1])
    else:
        each = deciding.rows(np.repeat(np.arange(len(test.once())), seeds))
        errors = copies.guarded(each, point.tolerance).errors_CJN[-1]
    test.errors[CHECKED] = errors


def _read(test: _Test, shift: int, tag: str) -> None:
    """The same with the LLM; `shift` is 0 first."""
    if test.heard[BASE].top_rows_JSAK is None or test.ground.lab.crew.base.llm is None:
        return
    once, lines = test.once(shift), test.ground.lines
    if not shift:
        everybodys = test.choice.weights[EVERYBODYS]
        found = _judged(test, once, test.heard[BASE], lambda job: test.ground.generic, everybodys)
        test.errors[LLM] = test.for_all_seeds(found)
    weights = test.choice.weights_of(RELATED)
    found = _judged(test, once, test.heard[SENTENCES + tag], lambda job: lines(once, job), weights)
    test.errors[SENTENCES + tag] = test.for_all_seeds(found)
    if ALL + tag in test.heard:
        found = _judged(test, once, test.heard[ALL + tag], lambda job: lines(once, job), weights)
        test.errors[ALL + tag] = test.for_all_seeds(found)
    else:
        test.errors[ALL + tag] = test.errors[SENTENCES + tag]


def _judged(test: _Test, plan: crew_lib.Plan, heard: fit.Heard, lines, weights) -> np.ndarray:
    """Word errors of the texts that the LLM prefers among the likeliest of what was heard."""
    ground, count = test.ground, test.config.num_best
    best = study_reading.n_best(ground.lab.crew, plan, heard, count, ground.grams)
    said = study_reading.judge(ground.lab.crew, plan, {"": best}, lines)[""]
    return study_reading.errors_at(best, said, weights)


def _by_size(test: _Test, size: int) -> None:
    """'acoustic', 'sentences' and 'all' from fewer utterances, first seed; few are all learnt from unchecked."""
    lab, point, prior = test.ground.lab, test.choice.point, test.choice.prior
    plan = test.plan(0, test.config.seeds[:1], validate=False, num_adapt=size)
    words = study_scores.words_of(lab.references(plan)).sum()
    copies = lab.run(point, [point], plan) if point else None
    row = {ACOUSTIC: copies.errors_CJN[-1].sum() / words} if copies else {}
    heard = {SENTENCES: lab.hear(plan, prior=prior)}
    if copies:
        heard[ALL] = lab.hear(plan, copies, prior)
    if heard[SENTENCES].top_rows_JSAK is not None and lab.crew.base.llm is not None:
        weights, lines = test.choice.weights_of(RELATED), test.ground.lines
        for name, h in heard.items():
            found = _judged(test, plan, h, lambda job: lines(plan, job), weights)
            row[name] = found.sum() / words
    test.notes.write(f"wer from {size} utterances", {name: float(w) for name, w in row.items()})
