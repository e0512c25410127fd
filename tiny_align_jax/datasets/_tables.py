"""Rows of the tables that Hugging Face folders hold: csv, jsonl, parquet and arrow."""

import csv
import dataclasses
import importlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from tiny_align_jax.types import ConfigError, DataError

_METADATA = ("metadata.csv", "metadata.jsonl")


@dataclasses.dataclass(frozen=True)
class Table:
    """One file of rows."""

    path: pathlib.Path

    @property
    def is_audiofolder(self) -> bool:
        """Whether rows name audio files in a column `file_name`."""
        return self.path.name in _METADATA

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Rows in order, a mapping from column to value each.

        Raises:
            DataError: the file is damaged.
            ConfigError: it needs pyarrow, which is missing.
        """
        try:
            yield from _READERS[self.path.suffix](self.path)
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{self.path}: cannot read ({error}); download it again") from error


def find(root: pathlib.Path, split: str) -> list[Table]:
    """The files of a split.

    Raises:
        DataError: none there.
    """
    shards = [
        *root.rglob(f"{split}-*.parquet"),
        *root.rglob(f"{split}/*.parquet"),
        *root.glob(f"{split}/*.arrow"),
        *(root / split / name for name in _METADATA),
    ]
    found = sorted({path for path in shards if path.is_file()})
    if not found and split == "train":  # a folder that is not divided is all for training
        whole = [
            *(root / name for name in _METADATA),
            *root.glob("*.arrow"),
            *root.glob("*.parquet"),
        ]
        found = sorted(path for path in whole if path.is_file())
    if not found:
        raise DataError(
            f"{root}: no {split} split; looked for {split}/metadata.csv or .jsonl, "
            f"{split}-*.parquet, {split}/*.parquet and {split}/*.arrow"
        )
    return [Table(path) for path in found]


def _csv(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _jsonl(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _parquet(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    parquet = _pyarrow("parquet")
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
        yield from batch.to_pylist()


def _arrow(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    ipc = _pyarrow("ipc")
    with open(path, "rb") as file:
        for batch in ipc.open_stream(file):
            yield from batch.to_pylist()


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise ConfigError("parquet and arrow files need pyarrow: pip install pyarrow") from error


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".arrow": _arrow}
