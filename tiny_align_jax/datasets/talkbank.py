"""TalkBank corpora: CHAT transcripts (`.cha`) with their recordings, clinical and child speech above all.

Access: most of TalkBank's clinical banks (https://dementia.talkbank.org, https://aphasia.talkbank.org, ...)
are open to members only; faculty and clinicians join by e-mail. CHILDES (https://childes.talkbank.org) is
largely open. The corpora may not be passed on, so none is shipped; cite each corpus as its page asks, under
the ground rules of https://talkbank.org/0share/.

`layout` says how the files lie:
    folder       any tree of `.cha` files; recordings beside them, or under `media`
    adress2020   the ADReSS challenge: {train,test}/{Full_wave_enhanced_audio,transcription}, in train
                 sorted into cc (controls) and cd (cases), with cc_meta_data.txt, cd_meta_data.txt and
                 meta_data.txt; the archives may be unpacked into one folder or side by side

An utterance is a main tier of a chosen participant with a time mark. Whatever cannot be used (no mark, no
words, unintelligible, somebody else talking at the same time, ...) is skipped by name, with the reason,
in `scan(...).skipped`, and counted in the log. Tiers of transcripts that are not linked to their recording
are in `scan(...).untimed`, for an aligner to time.
"""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence

from absl import logging

from tiny_align_jax.datasets import _chat, _chat_media, _chat_text
from tiny_align_jax.datasets._problems import Problem, raise_if_any
from tiny_align_jax.types import ConfigError, DataError, Utterance

SPLITS = ("all", "train", "test")
LAYOUTS = ("folder", "adress2020")


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the corpus lies and which of its speech is used.

    Attributes:
        root: folder of the corpus.
        layout: 'folder' or 'adress2020'.
        media: folder of the recordings, if not beside the transcripts ('folder' only).
        participants: codes to take, with * and ? as wildcards.
        keep_fillers: 'um' and 'uh' are text.
        use_replacements: take `word` of `wrd [: word]`, instead of what was said.
        drop_unintelligible: skip tiers with xxx, yyy or www; else only those marks go.
        max_overlap_s: longest time another speaker may talk within an utterance.
        speaker_regex: its first group, searched in a transcript's path below root, names the person, for
            corpora with several transcripts a person; '' makes every transcript a person of its own.
    """

    root: str = ""
    layout: str = "folder"
    media: str = ""
    participants: tuple[str, ...] = ("PAR*", "CHI*")
    keep_fillers: bool = True
    use_replacements: bool = False
    drop_unintelligible: bool = True
    max_overlap_s: float = 0.1
    speaker_regex: str = ""


@dataclasses.dataclass(frozen=True)
class Untimed:
    """A transcript without time marks whose recording is there.

    Attributes:
        transcript: path of the `.cha` file.
        audio_path: its recording.
        utterances: what every participant says, in order, as if each filled the recording: an aligner
            needs the interviewer's words to pass over them.
        chosen: ids of the chosen participants' utterances, the ones to keep.
    """

    transcript: str
    audio_path: str
    utterances: tuple[Utterance, ...]
    chosen: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Scan:
    """All that was found.

    Attributes:
        utterances: sorted by id.
        skipped: reason of every tier or transcript left out, by '<file>:<line>'.
        untimed: transcripts for an aligner.
    """

    utterances: tuple[Utterance, ...]
    skipped: Mapping[str, str]
    untimed: tuple[Untimed, ...]


def read(config: Config, split: str) -> list[Utterance]:
    """The utterances of `split`, sorted by id; how many were skipped, and why, is logged.

    'all' is everything under root; 'train' and 'test' are folders of that name.

    Raises:
        ConfigError: unknown layout, or a speaker_regex that cannot work.
        DataError: unknown split, nothing there, malformed transcripts (all faults listed with file and
            line), or no usable utterance.
    """
    found = scan(config, split)
    for reason, count in collections.Counter(map(_kind, found.skipped.values())).most_common():
        logging.info("talkbank %s: skipped %d: %s", split, count, reason)
    if not found.utterances:
        shown = "\n  ".join(f"{k}: {v}" for k, v in list(found.skipped.items())[:10])
        raise DataError(f"{config.root}: no usable utterance of {config.participants}\n  {shown}")
    return list(found.utterances)


def scan(config: Config, split: str) -> Scan:
    """As `read`, with what was skipped; may be empty."""
    if split not in SPLITS:
        raise DataError(f"talkbank has no split {split!r}; it has {', '.join(SPLITS)}")
    if config.layout not in LAYOUTS:
        raise ConfigError(f"talkbank.layout = {config.layout!r}, expected {' or '.join(LAYOUTS)}")
    _check_regex(config.speaker_regex)
    sources = _chat_media.sources(config.root, config.layout, config.media, split)
    problems: list[Problem] = []
    reader = _Reader(config, problems)
    for source in sources:
        reader.take(source)
    raise_if_any(problems, f"talkbank corpus {config.root}")
    utterances = sorted(reader.utterances, key=lambda u: u.utterance_id)
    return Scan(tuple(utterances), reader.skipped, tuple(reader.untimed))


def _check_regex(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"talkbank.speaker_regex = {pattern!r}: {error}") from error
    if pattern and groups != 1:
        raise ConfigError(
            f"talkbank.speaker_regex = {pattern!r}: expected one group in parentheses"
        )


def _kind(reason: str) -> str:
    """A reason without its particulars, to count by."""
    return reason.partition(" (")[0]


class _Reader:
    """Turns transcripts into utterances, skipped tiers and problems."""

    def __init__(self, config: Config, problems: list[Problem]) -> None:
        self.utterances: list[Utterance] = []
        self.skipped: dict[str, str] = {}
        self.untimed: list[Untimed] = []
        self._config = config
        self._problems = problems
        self._options = _chat_text.Options(config.keep_fillers, config.use_replacements)

    def take(self, source: _chat_media.Source) -> None:
        """One transcript."""
        transcript = _chat.read(source.path, self._problems)
        audio_path, why_not = source.find_audio(transcript.media, transcript.media_words)
        if audio_path is None:
            self.skipped[str(source.path)] = why_not
            return
        chosen = [t for t in transcript.tiers if self._is_chosen(t.code)]
        is_timed = any(tier.start_ms is not None for tier in transcript.tiers)
        taken = []
        for tier in chosen:
            reason = self._why_skip(tier, transcript.tiers) if is_timed else ""
            utterance = self._utterance(tier, transcript, source, str(audio_path))
            if isinstance(utterance, str):
                reason = reason or utterance
            if reason:
                self.skipped[f"{source.path}:{tier.line}"] = reason
            elif isinstance(utterance, Utterance):
                taken.append(utterance)
        if is_timed:
            self.utterances += taken
        elif taken:
            spoken = [
                self._utterance(t, transcript, source, str(audio_path)) for t in transcript.tiers
            ]
            everybody = tuple(u for u in spoken if isinstance(u, Utterance))
            ids = frozenset(u.utterance_id for u in taken)
            self.untimed.append(Untimed(str(source.path), str(audio_path), everybody, ids))
            self.skipped[str(source.path)] = f"no time marks ({len(taken)} tiers to be aligned)"

    def _is_chosen(self, code: str) -> bool:
        return any(fnmatch.fnmatchcase(code, pattern) for pattern in self._config.participants)

    def _why_skip(self, tier: _chat.Tier, tiers: Sequence[_chat.Tier]) -> str:
        """What is wrong with a tier's time; '' if nothing."""
        if tier.start_ms is None or tier.end_ms is None:
            return "no time mark"
        if tier.end_ms <= tier.start_ms:
            return f"zero or negative length ({tier.start_ms}_{tier.end_ms})"
        for other in tiers:
            if other.code == tier.code or other.start_ms is None or other.end_ms is None:
                continue
            overlap_ms = min(tier.end_ms, other.end_ms) - max(tier.start_ms, other.start_ms)
            if overlap_ms > 1000 * self._config.max_overlap_s:
                return f"overlap (with {other.code}, line {other.line}, by {overlap_ms} ms)"
        return ""

    def _utterance(
        self,
        tier: _chat.Tier,
        transcript: _chat.Transcript,
        source: _chat_media.Source,
        audio_path: str,
    ) -> Utterance | str:
        """The tier's utterance, or why there is none."""
        try:
            cleaned = _chat_text.clean(tier.text, self._options)
        except DataError as error:
            self._problems.append(Problem(str(source.path), tier.line, str(error)))
            return "malformed"
        if cleaned.unintelligible and self._config.drop_unintelligible:
            return "unintelligible (xxx, yyy or www)"
        if not cleaned.words:
            return "no words"
        person = transcript.participants.get(tier.code) or _chat.Participant(tier.code, "")
        meta = source.metadata
        return Utterance(
            utterance_id=f"{source.name}-{tier.code}-{tier.line:05d}",
            audio_path=audio_path,
            text=cleaned.text,
            speaker_id=f"{self._person(source.name)}-{tier.code}",
            start_s=(tier.start_ms or 0) / 1000,
            end_s=None if tier.end_ms is None else tier.end_ms / 1000,
            age=meta.age if person.age is None else person.age,
            sex=person.sex or meta.sex,
            extra=_extra(person, meta),
        )

    def _person(self, name: str) -> str:
        match = re.search(self._config.speaker_regex, name) if self._config.speaker_regex else None
        return match.group(1) if match else name


def _extra(person: _chat.Participant, meta: _chat_media.Metadata) -> dict[str, str]:
    """Columns for grouping scores: diagnosis, MMSE score, role, corpus; empty ones left out."""
    mmse = meta.mmse or (person.custom if person.custom.isdigit() else "")
    columns = {
        "group": meta.group or person.group,
        "mmse": mmse,
        "role": person.role,
        "corpus": person.corpus,
    }
    return {name: value for name, value in columns.items() if value}
