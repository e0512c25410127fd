"""speechocean762: read English by Mandarin speakers, half of them children (ages 6 to 43).

5000 utterances of 250 speakers, 20 each. Get it from https://www.openslr.org/101/ (520 MB) and unpack it;
`root` is the folder that holds `train`, `test` and `WAVE`. Its README allows commercial and
non-commercial use.

Source: Zhang et al., "speechocean762: An Open-Source Non-native English Speech Corpus For Pronunciation
Assessment", Interspeech 2021.
"""

import dataclasses
import pathlib

from tiny_align_jax.datasets import _problems
from tiny_align_jax.types import DataError, Utterance

SPLITS = ("train", "test")
_TABLES = ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender")


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the corpus lies.

    Attributes:
        root: folder that holds `train`, `test` and `WAVE`.
    """

    root: str = ""


def read(config: Config, split: str) -> list[Utterance]:
    """The utterances of `split`, sorted by id; text as in the corpus (upper case).

    Raises:
        DataError: unknown split, no corpus at `config.root`, or tables that contradict one another
            (all faults listed).
    """
    if split not in SPLITS:
        raise DataError(f"speechocean762 has no split {split!r}; it has {', '.join(SPLITS)}")
    root = pathlib.Path(config.root)
    _check_root(root, config.root, split)
    problems: list[_problems.Problem] = []
    wavs, texts, speakers, ages, sexes = (
        _read_table(root / split / name, problems) for name in _TABLES
    )
    for name, table in (("text", texts), ("utt2spk", speakers)):
        problems += _missing_rows(root / split / name, sorted(set(wavs) - set(table)))
    named = {speakers[u] for u in wavs if u in speakers}
    for name, table in (("spk2age", ages), ("spk2gender", sexes)):
        problems += _missing_rows(root / split / name, sorted(named - set(table)))
    problems += _bad_ages(root / split / "spk2age", ages)
    _problems.raise_if_any(problems, f"speechocean762 {split}")
    return [
        Utterance(
            utterance_id=utterance_id,
            audio_path=str(root / wavs[utterance_id]),
            text=texts[utterance_id],
            speaker_id=speakers[utterance_id],
            age=float(ages[speakers[utterance_id]]),
            sex=sexes[speakers[utterance_id]],
        )
        for utterance_id in sorted(wavs)
    ]


def _check_root(root: pathlib.Path, given: str, split: str) -> None:
    missing = [name for name in _TABLES if not (root / split / name).is_file()]
    if not given or missing:
        where = f"dataset.speechocean762.root = {given!r}"
        what = f"lacks {split}/" + f", {split}/".join(missing) if given else "is not set"
        raise DataError(
            f"{where} {what}. Get the corpus from https://www.openslr.org/101/ (520 MB), unpack it "
            "and set root to the folder that holds train, test and WAVE."
        )


def _read_table(path: pathlib.Path, problems: list[_problems.Problem]) -> dict[str, str]:
    """A Kaldi table, `key<TAB or space>value` a line; faults are appended to `problems`."""
    table: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip().split("\n"), start=1):
        key, *value = line.split(maxsplit=1) or [""]
        if not value:
            message = f"expected 'key<TAB>value', got {line!r}"
        elif key in table:
            message = f"{key!r} occurs twice"
        else:
            table[key] = value[0].strip()
            continue
        problems.append(_problems.Problem(str(path), number, message))
    return table


def _missing_rows(path: pathlib.Path, keys: list[str]) -> list[_problems.Problem]:
    return [_problems.Problem(str(path), 0, f"has no row for {key!r}") for key in keys]


def _bad_ages(path: pathlib.Path, ages: dict[str, str]) -> list[_problems.Problem]:
    return [
        _problems.Problem(str(path), 0, f"age of speaker {speaker!r} is {age!r}, expected years")
        for speaker, age in ages.items()
        if not age.replace(".", "", 1).isdigit()
    ]
