"""A Hugging Face dataset with an audio column, from a local folder; the `datasets` library is not needed.

Three kinds of folder are read, each with a part for every split:
    audiofolder  metadata.csv or metadata.jsonl with a `file_name` column, in <split>/ or beside all files
    parquet      a downloaded dataset repository: <split>-*.parquet or <split>/*.parquet at any depth
    arrow        what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote: <split>/data-*.arrow

The last two need pyarrow (`pip install pyarrow`). Audio that is embedded in them is written once, as it
is, to `cache_dir`.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from tiny_align_jax.datasets import _tables
from tiny_align_jax.datasets._problems import Problem, raise_if_any
from tiny_align_jax.types import CacheError, ConfigError, DataError, Utterance

SPLITS = ("train", "validation", "test")
_SEXES = {"f": "f", "female": "f", "m": "m", "male": "m"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the data set lies and which columns mean what.

    Attributes:
        root: its folder.
        cache_dir: folder for embedded audio; not needed otherwise.
        audio_column: embedded audio or paths; audiofolders always use `file_name`.
        text_column: transcripts.
        speaker_column: speakers; '' makes every utterance a speaker of its own.
        id_column: utterance ids; '' numbers the rows.
    """

    root: str = ""
    cache_dir: str = ""
    audio_column: str = "audio"
    text_column: str = "text"
    speaker_column: str = "speaker_id"
    id_column: str = ""


def read(config: Config, split: str) -> list[Utterance]:
    """The utterances of `split`, sorted by id; columns `age` and `sex` or `gender` are understood.

    Raises:
        DataError: unknown split, nothing there, a missing column, or bad rows (all listed).
        ConfigError: embedded audio and no cache_dir, or pyarrow is needed and missing.
        CacheError: embedded audio cannot be written.
    """
    if split not in SPLITS:
        raise DataError(f"huggingface has no split {split!r}; it has {', '.join(SPLITS)}")
    root = pathlib.Path(config.root)
    if not config.root or not root.is_dir():
        raise DataError(
            f"dataset.huggingface.root = {config.root!r} is no folder; download a data set with "
            "`hf download --repo-type dataset <name>`, or write one with Dataset.save_to_disk"
        )
    if not config.speaker_column:
        logging.warning("huggingface: no speaker_column, so every utterance is its own speaker")
    problems: list[Problem] = []
    utterances = list(_utterances(config, split, _tables.find(root, split), problems))
    raise_if_any(problems, f"data set {root}")
    return sorted(utterances, key=lambda utterance: utterance.utterance_id)


def _utterances(
    config: Config, split: str, tables: list[_tables.Table], problems: list[Problem]
) -> Iterator[Utterance]:
    count = 0
    taken: set[str] = set()
    for table in tables:
        audio_column = "file_name" if table.is_audiofolder else config.audio_column
        for number, row in enumerate(table.rows(), start=1):
            count += 1
            if number == 1:
                _check_columns(config, audio_column, row, table.path)
            name = str(row.get(config.id_column)) if config.id_column else f"{split}-{count:08d}"
            faults = list(_faults(config, row, name in taken))
            taken.add(name)
            audio_path, why_not = _audio(config, row.get(audio_column), table.path.parent)
            faults += [why_not] if why_not else []
            problems += [Problem(str(table.path), 0, f"row {number}: {fault}") for fault in faults]
            if not faults:
                yield _utterance(config, row, name, audio_path, audio_column)


def _check_columns(
    config: Config, audio_column: str, row: Mapping[str, Any], path: pathlib.Path
) -> None:
    wanted = (audio_column, config.text_column, config.speaker_column, config.id_column)
    missing = [column for column in wanted if column and column not in row]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(row)}. Set "
            "dataset.huggingface.text_column and the like ('' where there is no such column)"
        )


def _faults(config: Config, row: Mapping[str, Any], is_repeated: bool) -> Iterator[str]:
    text = row.get(config.text_column)
    if not isinstance(text, str) or not text.strip():
        yield f"{config.text_column!r} is {text!r}, expected text that is not empty"
    if config.speaker_column and row.get(config.speaker_column) in (None, ""):
        yield f"{config.speaker_column!r} is empty"
    if is_repeated:
        yield f"{config.id_column!r} {row.get(config.id_column)!r} occurs before"


def _audio(config: Config, value: Any, folder: pathlib.Path) -> tuple[str, str]:
    """Path of a row's audio, or '' and what is wrong. A value is a path, or {'bytes', 'path'}."""
    content, path = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    )
    if content:
        return _kept(config, content, pathlib.PurePath(path or "").suffix), ""
    if not path:
        return "", "no audio in the row"
    file = folder / str(path)
    return (str(file), "") if file.is_file() else ("", f"no audio file at {file}")


def _kept(config: Config, content: bytes, suffix: str) -> str:
    """Writes embedded audio under its own hash, once; appears whole or not at all."""
    if not config.cache_dir:
        raise ConfigError("dataset.huggingface.cache_dir is not set, and the audio is embedded")
    file = pathlib.Path(config.cache_dir) / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if file.is_file():
        return str(file)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except OSError as error:
        raise CacheError(
            f"cannot write {file}: {error}; free some space or set another cache_dir"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return str(file)


def _utterance(
    config: Config, row: Mapping[str, Any], name: str, audio_path: str, audio_column: str
) -> Utterance:
    sex = str(row.get("sex") or row.get("gender") or "").lower()
    known = {audio_column, config.text_column, config.speaker_column, config.id_column}
    return Utterance(
        utterance_id=name,
        audio_path=audio_path,
        text=row[config.text_column],
        speaker_id=str(row[config.speaker_column]) if config.speaker_column else name,
        age=_number(row.get("age")),
        sex=_SEXES.get(sex),
        extra={
            k: str(v) for k, v in row.items() if k not in known and isinstance(v, str | int | float)
        },
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
