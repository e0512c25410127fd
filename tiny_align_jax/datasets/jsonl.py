"""Your own recordings: a manifest with one JSON object a line.

    {"audio": "clips/a1.wav", "text": "Turn on the light.", "speaker": "anna"}
    {"audio": "long.mp3", "text": "Hello.", "speaker": "ben", "start_s": 3.2, "end_s": 4.1, "age": 7}

| field | type | meaning |
| --- | --- | --- |
| audio | text, required | wav, flac, ogg or mp3; relative to the manifest's folder (or to `root`) |
| text | text, required | what is said, not empty |
| speaker | text, required | who says it: splits by speaker and per-speaker scores need it |
| id | text | unique; else the audio path without suffix, and the time marks if given |
| start_s, end_s | number | the stretch of the file, seconds; else the whole file |
| age | number | years |
| sex | 'f' or 'm' | |
| split | 'train', 'validation' or 'test' | else the `{split}` of the file's name, else 'train' |

Further fields are kept as text in `Utterance.extra`. `python -m experiments.validate_manifest` lists
every row that does not fit, with file and line.
"""

import dataclasses
import difflib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tiny_align_jax.datasets._problems import Problem, raise_if_any
from tiny_align_jax.types import AudioError, DataError, Utterance

SPLITS = ("train", "validation", "test")
REQUIRED = ("audio", "text", "speaker")
FIELDS = (*REQUIRED, "id", "start_s", "end_s", "age", "sex", "split")
MAX_AGE = 120
_EXAMPLE = '{"audio": "a1.wav", "text": "Turn on the light.", "speaker": "anna"}'

AudioCheck = Callable[[str, float, float | None], object]


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the manifest lies.

    Attributes:
        manifest: path of the `.jsonl` file; with `{split}` in it, one file a split.
        root: folder that relative audio paths start from; '' means the manifest's own folder.
    """

    manifest: str = ""
    root: str = ""


@dataclasses.dataclass(frozen=True)
class _Row:
    """One line of a manifest: where it stands, its split and, if it is sound, its utterance."""

    path: str
    line: int
    split: str
    utterance: Utterance | None
    faults: tuple[str, ...]


def read(config: Config, split: str) -> list[Utterance]:
    """The utterances of `split`, sorted by id.

    Raises:
        DataError: unknown split, no manifest, or bad rows (all listed with file and line).
    """
    if split not in SPLITS:
        raise DataError(f"a manifest has no split {split!r}; it has {', '.join(SPLITS)}")
    rows = [row for row in _rows(config) if row.split == split or row.faults]
    raise_if_any(_problems_of(rows), "jsonl manifest")
    utterances = [row.utterance for row in rows if row.utterance is not None]
    if not utterances:
        raise DataError(
            f"no utterance of split {split!r} in {config.manifest}; give rows a field "
            f'"split": "{split}", or name one file a split with {{split}} in dataset.jsonl.manifest'
        )
    return sorted(utterances, key=lambda utterance: utterance.utterance_id)


def validate(config: Config, check_audio: AudioCheck | None = None) -> list[Problem]:
    """Every fault of every row, in the order of the file; an empty list means all is well.

    Args:
        config: which manifest.
        check_audio: called with (path, start_s, end_s) of each sound row; an AudioError it raises
            becomes a problem of that row. Pass `data.audio.read_audio` to decode every recording.

    Raises:
        DataError: there is no manifest.
    """
    rows = list(_rows(config))
    problems = _problems_of(rows)
    if check_audio is not None:
        for row in rows:
            if row.utterance is None:
                continue
            try:
                check_audio(row.utterance.audio_path, row.utterance.start_s, row.utterance.end_s)
            except AudioError as error:
                problems.append(Problem(row.path, row.line, str(error)))
    return sorted(problems, key=lambda problem: (problem.path, problem.line))


def num_rows(config: Config) -> int:
    """Rows in the manifest file or files, bad ones included."""
    return sum(1 for _ in _rows(config))


def _problems_of(rows: list[_Row]) -> list[Problem]:
    return [Problem(row.path, row.line, fault) for row in rows for fault in row.faults]


def _rows(config: Config) -> Iterator[_Row]:
    """Every line of every manifest file; ids that occur twice are faults of the later row."""
    first_line: dict[str, str] = {}
    for path, split in _files(config):
        root = pathlib.Path(config.root) if config.root else path.parent
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            row = _parse(line, str(path), number, root, split)
            if row.utterance is not None:
                place = first_line.setdefault(row.utterance.utterance_id, f"{path}:{number}")
                if place != f"{path}:{number}":
                    fault = f"id {row.utterance.utterance_id!r} is already at {place}; give an 'id'"
                    row = dataclasses.replace(row, utterance=None, faults=(fault,))
            yield row


def _files(config: Config) -> list[tuple[pathlib.Path, str | None]]:
    """Manifest files with the split that their name says, if it does."""
    if not config.manifest:
        raise DataError(f"dataset.jsonl.manifest is not set; a row looks like {_EXAMPLE}")
    files: list[tuple[pathlib.Path, str | None]] = [(pathlib.Path(config.manifest), None)]
    if "{split}" in config.manifest:
        paths = [pathlib.Path(config.manifest.replace("{split}", split)) for split in SPLITS]
        files = [(path, split) for path, split in zip(paths, SPLITS, strict=True) if path.is_file()]
    if not files or not all(path.is_file() for path, _ in files):
        raise DataError(
            f"no manifest at dataset.jsonl.manifest = {config.manifest!r}; a row looks like {_EXAMPLE}"
        )
    return files


def _parse(line: bytes, path: str, number: int, root: pathlib.Path, file_split: str | None) -> _Row:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return _Row(path, number, "", None, (f"not JSON ({error}); expected {_EXAMPLE}",))
    if not isinstance(fields, dict):
        return _Row(path, number, "", None, (f"expected an object like {_EXAMPLE}",))
    faults = [*_schema_faults(fields), *_split_faults(fields, file_split)]
    if not faults:
        audio_path = root / fields["audio"]
        if not audio_path.is_file():
            faults.append(f"no audio file at {audio_path}")
    split = fields.get("split") or file_split or "train"
    utterance = None if faults else _utterance(fields, root)
    return _Row(path, number, split, utterance, tuple(faults))


def _schema_faults(fields: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of one row, without looking at files."""
    for name in REQUIRED:
        if not _is_text(fields.get(name)):
            yield f"{name!r} is {_shown(fields, name)}, expected text that is not empty"
    if fields.get("id") is not None and not _is_text(fields["id"]):
        yield f"'id' is {fields['id']!r}, expected text that is not empty"
    for name in ("start_s", "end_s"):
        if fields.get(name) is not None and not _is_number(fields[name]):
            yield f"{name!r} is {fields[name]!r}, expected seconds >= 0"
    start_s, end_s = fields.get("start_s") or 0.0, fields.get("end_s")
    if _is_number(start_s) and end_s is not None and _is_number(end_s) and end_s <= start_s:
        yield f"'end_s' is {end_s}, expected more than 'start_s' = {start_s}"
    age = fields.get("age")
    if age is not None and not (_is_number(age) and age <= MAX_AGE):
        yield f"'age' is {age!r}, expected years from 0 to {MAX_AGE}"
    if fields.get("sex") not in (None, "f", "m"):
        yield f"'sex' is {fields['sex']!r}, expected 'f' or 'm'"
    for name in sorted(fields.keys() - set(FIELDS)):
        # A misspelt optional field would otherwise be dropped without a word.
        close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.75)
        if close and close[0] not in fields:
            yield f"unknown field {name!r}; did you mean {close[0]!r}?"


def _split_faults(fields: Mapping[str, Any], file_split: str | None) -> Iterator[str]:
    split = fields.get("split")
    if split not in (None, *SPLITS):
        yield f"'split' is {split!r}, expected one of {', '.join(SPLITS)}"
    elif split is not None and file_split is not None and split != file_split:
        yield f"'split' is {split!r} in the file of split {file_split!r}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and value >= 0


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "missing"


def _utterance(fields: Mapping[str, Any], root: pathlib.Path) -> Utterance:
    start_s, end_s = float(fields.get("start_s") or 0.0), fields.get("end_s")
    marks = "" if start_s == 0.0 and end_s is None else f"@{start_s:.3f}-{_seconds(end_s)}"
    stem = pathlib.PurePosixPath(fields["audio"]).with_suffix("").as_posix()
    return Utterance(
        utterance_id=fields.get("id") or stem + marks,
        audio_path=str(root / fields["audio"]),
        text=fields["text"],
        speaker_id=fields["speaker"],
        start_s=start_s,
        end_s=None if end_s is None else float(end_s),
        age=None if fields.get("age") is None else float(fields["age"]),
        sex=fields.get("sex"),
        extra={k: str(v) for k, v in fields.items() if k not in FIELDS},
    )


def _seconds(end_s: float | None) -> str:
    return "" if end_s is None else f"{end_s:.3f}"
