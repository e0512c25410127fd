"""Splits and the leak check: which utterances may train, validate and test.

A split never looks at results. Sentences are compared in spoken form, so that case and punctuation
cannot hide a leak.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.types import ConfigError, DataError, Utterance


@dataclasses.dataclass(frozen=True)
class Split:
    """Utterances by role.

    Attributes:
        train: may be trained on.
        validation: speakers held out of train; for every choice that looks at a score.
        test: scored, never chosen by.
        dropped: training utterances left out because the test set has their sentence.
    """

    train: tuple[Utterance, ...]
    validation: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    dropped: tuple[Utterance, ...] = ()


def held_out(
    train: Sequence[Utterance],
    test: Sequence[Utterance],
    num_validation_speakers: int,
    seed: int = 0,
    num_train_speakers: int | None = None,
) -> Split:
    """Train and test as given, less training sentences that occur in test, less validation speakers.

    Validation speakers are drawn in proportion to the age bands of the training speakers, so that
    children, who are hardest, are represented.

    Args:
        train: candidates for training and validation.
        test: scored utterances, all kept.
        num_validation_speakers: speakers taken out of train; 0 for none.
        seed: of the draw.
        num_train_speakers: keep only so many training speakers (after validation is out).

    Raises:
        ConfigError: more speakers asked for than there are.
    """
    test_sentences = {spoken_form(u.text) for u in test}
    dropped = tuple(u for u in train if spoken_form(u.text) in test_sentences)
    rest = [u for u in train if spoken_form(u.text) not in test_sentences]
    order = _speakers_by_band(rest, seed)
    wanted = num_validation_speakers + (num_train_speakers or 1)
    if wanted > len(order):
        raise ConfigError(
            f"split needs {num_validation_speakers} validation and {num_train_speakers or 'some'} "
            f"training speakers, but there are {len(order)} after {len(dropped)} utterance(s) were "
            "dropped whose sentence is in the test set"
        )
    validation_speakers = set(order[:num_validation_speakers])
    training = order[num_validation_speakers:]
    training_speakers = set(training[: num_train_speakers or len(training)])
    return Split(
        train=tuple(u for u in rest if u.speaker_id in training_speakers),
        validation=tuple(u for u in rest if u.speaker_id in validation_speakers),
        test=tuple(test),
        dropped=dropped,
    )


def speaker_fold(
    utterances: Sequence[Utterance], num_folds: int, fold: int, seed: int = 0
) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances to learn from and to score, of different speakers: for a corpus without a test set.

    Every speaker is scored in one fold, and the folds have about the same mix of age bands.

    Args:
        utterances: of the whole corpus.
        num_folds: parts that the speakers are dealt to.
        fold: the part to score, counted from 0.
        seed: of the deal.

    Raises:
        ConfigError: fewer speakers than folds, or no such fold.
    """
    order = _speakers_by_band(utterances, seed)
    if not 2 <= num_folds <= len(order) or not 0 <= fold < num_folds:
        raise ConfigError(
            f"split: no fold {fold} of {num_folds} over {len(order)} speakers; expected 2 to {len(order)} "
            "folds (num_folds), counted from 0 (fold)"
        )
    scored = set(order[fold::num_folds])
    rest = [u for u in utterances if u.speaker_id not in scored]
    return rest, [u for u in utterances if u.speaker_id in scored]


def within_speaker(
    utterances: Sequence[Utterance],
    num_test: int,
    num_validation: int,
    fold: int = 0,
    seed: int = 0,
) -> Split:
    """One speaker's utterances by role: to adapt on (`train`), to choose by, and to score.

    The order is drawn once a seed; test sets of different folds do not overlap.

    Args:
        utterances: of one speaker.
        num_test: utterances to score.
        num_validation: utterances taken out of the rest to stop and to choose by.
        fold: which test set; there are `len(utterances) // num_test` of them.
        seed: of the order.

    Raises:
        ConfigError: too few utterances, or no such fold.
    """
    count = len(utterances)
    if num_test < 1 or num_validation < 0 or not 0 <= fold < count // max(num_test, 1):
        raise ConfigError(
            f"no fold {fold} of {num_test} test utterances in {count}; there are "
            f"{count // max(num_test, 1)} folds, counted from 0"
        )
    if count - num_test - num_validation < 1:
        raise ConfigError(
            f"{count} utterances less {num_test} to test and {num_validation} to validate leave none to "
            "adapt on"
        )
    ordered = sorted(utterances, key=lambda u: u.utterance_id)
    order = np.random.default_rng(seed).permutation(count)
    test = set(order[fold * num_test : (fold + 1) * num_test])
    rest = [ordered[i] for i in order if i not in test]
    return Split(
        train=tuple(rest[num_validation:]),
        validation=tuple(rest[:num_validation]),
        test=tuple(ordered[i] for i in sorted(test)),
    )


def leaks(
    split: Split, shared_speakers: bool = False, digest_of: Mapping[str, str] | None = None
) -> list[str]:
    """What train or validation shares with test, one line each; empty when clean.

    Sentences and audio of the test set must occur nowhere else. Speakers must differ between train,
    validation and test, unless `shared_speakers` says that the task is one user's own voice.

    Args:
        split: to check.
        shared_speakers: see above.
        digest_of: hash of the audio files by path, so that a copy under another name is found; without
            it, and for files it lacks, paths are compared.
    """
    digests = digest_of or {}

    def stretches(utterances: Sequence[Utterance]) -> dict[tuple, str]:
        return {
            (digests.get(u.audio_path, u.audio_path), u.start_s, u.end_s): u.audio_path
            for u in utterances
        }

    problems = []
    roles = {"train": split.train, "validation": split.validation, "test": split.test}
    pairs = (
        ()
        if shared_speakers
        else (("train", "validation"), ("train", "test"), ("validation", "test"))
    )
    for a, b in pairs:
        both = {u.speaker_id for u in roles[a]} & {u.speaker_id for u in roles[b]}
        problems += [f"speaker {s} is in {a} and {b}" for s in sorted(both)]
    for role in ("train", "validation"):
        test_sentences = {spoken_form(u.text) for u in split.test}
        shared = {spoken_form(u.text) for u in roles[role]} & test_sentences
        problems += [f"sentence {s!r} is in {role} and test" for s in sorted(shared)]
        mine, test_audio = stretches(roles[role]), stretches(split.test)
        problems += [
            f"audio {mine[key]} is in {role}, and in test as {test_audio[key]}"
            for key in sorted(mine.keys() & test_audio.keys(), key=str)
        ]
    return problems


def refuse_leaks(
    split: Split, shared_speakers: bool = False, digest_of: Mapping[str, str] | None = None
) -> None:
    """Raises DataError listing every leak of `leaks`."""
    problems = leaks(split, shared_speakers, digest_of)
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DataError(f"{len(problems)} leak(s) between splits:\n  {shown}{more}")


AGE_BANDS = ("6-9", "10-15", "adult", "unknown")  # in which results are reported


def age_band(age: float | None) -> str:
    """One of AGE_BANDS."""
    if age is None:
        return "unknown"
    return "6-9" if age < 10 else "10-15" if age < 16 else "adult"


def _speakers_by_band(utterances: Sequence[Utterance], seed: int) -> list[str]:
    """Speakers in an order whose every prefix has about the corpus's mix of age bands."""
    # One age a speaker: in a corpus that follows children for years each has several.
    ages: dict[str, float | None] = {}
    for u in utterances:
        known = [age for age in (ages.get(u.speaker_id), u.age) if age is not None]
        ages[u.speaker_id] = min(known, default=None)
    bands: dict[str, list[str]] = {}
    for speaker in sorted(ages):
        bands.setdefault(age_band(ages[speaker]), []).append(speaker)
    rng = np.random.default_rng(seed)
    placed = []
    for name in sorted(bands):
        speakers = [bands[name][i] for i in rng.permutation(len(bands[name]))]
        placed += [((k + 0.5) / len(speakers), name, s) for k, s in enumerate(speakers)]
    return [speaker for _, _, speaker in sorted(placed)]
