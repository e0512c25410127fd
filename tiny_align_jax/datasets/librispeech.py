"""LibriSpeech: read English audio books, 1000 hours, in the corpus's own layout.

Get a part from https://www.openslr.org/12/ (CC BY 4.0; dev-clean is 337 MB) and unpack it; `root` is the
folder `LibriSpeech` that holds `SPEAKERS.TXT` and the parts. A part is a split.

Source: Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015.
"""

import dataclasses
import pathlib

from tiny_align_jax.datasets._problems import Problem, raise_if_any
from tiny_align_jax.types import DataError, Utterance

SPLITS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
_SEXES = {"M": "m", "F": "f"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the corpus lies.

    Attributes:
        root: the folder `LibriSpeech`.
    """

    root: str = ""


def read(config: Config, split: str) -> list[Utterance]:
    """The utterances of a part, sorted by id; text as in the corpus (upper case).

    Raises:
        DataError: unknown split, nothing there, or faults in transcripts or files (all listed).
    """
    if split not in SPLITS:
        raise DataError(f"librispeech has no split {split!r}; it has {', '.join(SPLITS)}")
    root = pathlib.Path(config.root)
    transcripts = sorted((root / split).glob("*/*/*.trans.txt")) if config.root else []
    if not transcripts:
        raise DataError(
            f"dataset.librispeech.root = {config.root!r} holds no {split}/*/*/*.trans.txt. Get {split} "
            "from https://www.openslr.org/12/, unpack it and set root to the folder LibriSpeech."
        )
    problems: list[Problem] = []
    sexes = _read_sexes(root / "SPEAKERS.TXT", problems)
    utterances = [
        utterance for path in transcripts for utterance in _read_chapter(path, sexes, problems)
    ]
    raise_if_any(problems, f"librispeech {split}")
    return sorted(utterances, key=lambda utterance: utterance.utterance_id)


def _read_chapter(
    path: pathlib.Path, sexes: dict[str, str], problems: list[Problem]
) -> list[Utterance]:
    """One `<speaker>-<chapter>.trans.txt`: lines `<utterance id> <TEXT>` beside the FLAC files."""
    utterances = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        utterance_id, _, text = line.partition(" ")
        audio_path = path.with_name(f"{utterance_id}.flac")
        speaker = utterance_id.split("-")[0]
        if not text.strip() or utterance_id.count("-") != 2:
            fault = f"expected '<speaker>-<chapter>-<number> TEXT', got {line[:60]!r}"
        elif not audio_path.is_file():
            fault = f"no audio file at {audio_path}"
        else:
            sex = sexes.get(speaker)
            utterances.append(
                Utterance(utterance_id, str(audio_path), text.strip(), speaker, sex=sex)
            )
            continue
        problems.append(Problem(str(path), number, fault))
    return utterances


def _read_sexes(path: pathlib.Path, problems: list[Problem]) -> dict[str, str]:
    """Sex by speaker of `SPEAKERS.TXT`: `id | M or F | subset | minutes | name`; {} without the file."""
    sexes: dict[str, str] = {}
    if not path.is_file():
        return sexes
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith(";") or not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 2 or fields[1] not in _SEXES:
            problems.append(
                Problem(str(path), number, f"expected 'id | M or F | ...', got {line!r}")
            )
        else:
            sexes[fields[0]] = _SEXES[fields[1]]
    return sexes
