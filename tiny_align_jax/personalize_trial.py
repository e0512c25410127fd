"""Before and after: one speaker's test utterances read by the base, by the user's copy, and by the copy of
somebody else, which is the control: without it, more training passes for personalisation.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiny_align_jax import personalize, scoring
from tiny_align_jax.adapt import material, recipe, user
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import splits
from tiny_align_jax.datasets import jsonl
from tiny_align_jax.train import corpus
from tiny_align_jax.types import ConfigError, DataError, Utterance

BEFORE, AFTER, CONTROL = "before", "after", "other speaker's"
NORMALIZER = "whisper_english"
NUM_TEST = 6  # of a speaker's 20 utterances, three folds


@dataclasses.dataclass(frozen=True)
class Trial:
    """One speaker's test utterances before and after.

    Attributes:
        utterances: scored.
        systems: texts by BEFORE, AFTER and, with somebody else's copy, CONTROL.
        scores: what `scoring.score` makes of them.
    """

    utterances: tuple[Utterance, ...]
    systems: Mapping[str, Sequence[str]]
    scores: Mapping[str, Any]

    def __str__(self) -> str:
        found = self.scores[NORMALIZER]
        lines = [
            f"{len(self.utterances)} test utterance(s), normaliser {NORMALIZER}, 95 % intervals:"
        ]
        for name, row in found["scores"].items():
            lines.append(f"  {name}: {_cells(row[scoring.ALL])}")
        for name, row in found["differences"].items():
            lines.append(f"  {name}, paired: {_cells(row)}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Said:
    """What a user said.

    Attributes:
        train: to adapt on (`personalize` holds its own validation utterances back).
        test: to score, may be empty.
        other: another speaker's, as many, for the control; may be empty.
    """

    train: tuple[Utterance, ...]
    test: tuple[Utterance, ...] = ()
    other: tuple[Utterance, ...] = ()


def gather(
    base: Aligner,
    speaker: str | None,
    manifest: str | None,
    recordings: Sequence[tuple[str, str]],
    fold: int,
    config: recipe.Config,
) -> Said:
    """A user's utterances from exactly one source.

    Args:
        base: whose corpus `speaker` is looked up in.
        speaker: name in that corpus.
        manifest: file of the plug-in `jsonl`.
        recordings: (audio file, transcript) pairs.
        fold: of a speaker's test utterances.
        config: seed.

    Raises:
        ConfigError: none or several sources.
        DataError: no such speaker, or a bad manifest.
    """
    if sum(map(bool, (speaker, manifest, recordings))) != 1:
        raise ConfigError(
            "give one of --speaker, --manifest, or --audio with as many --text, to say whose voice it is"
        )
    if speaker:
        return of_speaker(base, speaker, fold, config.seed)
    if manifest:
        rows = jsonl.Config(manifest)
        try:
            test = jsonl.read(rows, "test")
        except DataError:  # none to score; what is wrong with a manifest shows in the next line
            test = []
        return Said(tuple(jsonl.read(rows, "train")), tuple(test))
    return Said(tuple(Utterance(path, path, text, "user") for path, text in recordings))


def of_speaker(base: Aligner, speaker: str, fold: int, seed: int) -> Said:
    """A speaker of the base's own corpus that it was not trained on.

    Raises:
        DataError: no such speaker, or one that it was trained on.
    """
    split = corpus.read_split(base.config)
    parts = {"test": split.test, "validation": split.validation, "train": split.train}
    found = [role for role, part in parts.items() if any(u.speaker_id == speaker for u in part)]
    if not found or found == ["train"]:
        there = sorted({u.speaker_id for u in (*split.test, *split.validation)})
        why = "the base was trained on this speaker" if found else "there is no such speaker"
        raise DataError(f"speaker {speaker!r}: {why}; there are {', '.join(there[:12])} ...")
    part = parts[found[0]]
    speakers = sorted({u.speaker_id for u in part})
    following = speakers[(speakers.index(speaker) + 1) % len(speakers)]
    own, other = (
        splits.within_speaker([u for u in part if u.speaker_id == s], NUM_TEST, 0, fold, seed)
        for s in (speaker, following)
    )
    return Said(own.train, own.test, other.train if following != speaker else ())


def run(
    aligner: Aligner,
    workdir: str | os.PathLike,
    test: Sequence[Utterance],
    result: personalize.Result,
    control: personalize.Result | None = None,
) -> Trial:
    """Reads and scores a speaker's test utterances.

    Args:
        aligner: the base.
        workdir: where it was loaded from.
        test: what to score.
        result: the speaker's own.
        control: somebody else's.
    """
    base = user.fingerprint(workdir)
    systems: dict[str, list[str]] = {}
    for name, found in ((BEFORE, None), (AFTER, result), (CONTROL, control)):
        if found or name == BEFORE:
            own = user.apply(aligner, found.state, base) if found else aligner
            used, systems[name] = hear(own, test)
    pairs = [(AFTER, BEFORE)] + ([(AFTER, CONTROL)] if control else [])
    scores = scoring.score(scoring.Config(), used, systems, pairs)
    return Trial(tuple(used), systems, scores)


def hear(aligner: Aligner, utterances: Sequence[Utterance]) -> tuple[list[Utterance], list[str]]:
    """What an aligner, a user's or a base, hears; utterances that can be read, and their texts."""
    recordings = user.record(aligner, utterances)
    nothing = [np.zeros(1, np.int32)] * len(recordings.used)
    said = material.frames_corpus(recordings.frames, nothing)
    return list(recordings.used), list(aligner.hear(said.inputs, said.num_frames_N).texts)


def to_json(result: personalize.Result, trial: Trial | None) -> dict[str, Any]:
    """A result and its trial in plain values."""
    found: dict[str, Any] = {
        "user": result.state.user,
        "about": dict(result.state.about),
        "seconds": dict(result.seconds),
        "peak_rss_mb": result.peak_rss_mb,
    }
    if trial:
        found |= {"scores": trial.scores, "texts": {k: list(v) for k, v in trial.systems.items()}}
        found["references"] = [u.text for u in trial.utterances]
    return found


def _cells(row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{m} {row[m]['value']:.3f} [{row[m]['low']:.3f}, {row[m]['high']:.3f}]"
        for m in ("wer", "rouge1")
    )
