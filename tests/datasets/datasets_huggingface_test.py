"""Audio folders, parquet shards and saved data sets, all of them in miniature."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile

from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import huggingface
from tiny_align_jax.types import CacheError, ConfigError, DataError


def sound(seed=0, format="WAV"):
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, 8000)
    soundfile.write(buffer, noise, 16000, format=format)
    return buffer.getvalue()


def rows(count=3):
    return [
        {"audio": {"bytes": sound(i), "path": f"clip{i}.wav"}, "text": f"number {i}",
         "speaker_id": i % 2, "age": 20 + i, "gender": "female", "accent": "x"}
        for i in range(count)
    ]  # fmt: skip


def read(root, split="train", **options):
    options = {"cache_dir": str(root / "cache")} | options
    return huggingface.read(huggingface.Config(root=str(root), **options), split)


def write_parquet(path, table_rows):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(table_rows), path)


def write_arrow(path, table_rows):
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.Table.from_pylist(table_rows)
    with open(path, "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def write_folder(root, table_rows, kind):
    root.mkdir(parents=True, exist_ok=True)
    table = []
    for row in table_rows:
        (root / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])
        table.append(
            {"file_name": row["audio"]["path"]} | {k: v for k, v in row.items() if k != "audio"}
        )
    with open(root / f"metadata.{kind}", "w", newline="") as file:
        if kind == "jsonl":
            file.write("".join(json.dumps(row) + "\n" for row in table))
        else:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)


LAYOUTS = {
    "parquet shards": lambda root, r: (
        write_parquet(root / "data" / "train-00000-of-00002.parquet", r[:2]),
        write_parquet(root / "data" / "train-00001-of-00002.parquet", r[2:]),
    ),
    "parquet folders": lambda root, r: write_parquet(
        root / "default" / "train" / "0000.parquet", r
    ),
    "saved to disk": lambda root, r: write_arrow(root / "train" / "data-00000-of-00001.arrow", r),
    "saved, one split": lambda root, r: write_arrow(root / "data-00000-of-00001.arrow", r),
    "audiofolder, csv": lambda root, r: write_folder(root / "train", r, "csv"),
    "audiofolder, jsonl": lambda root, r: write_folder(root / "train", r, "jsonl"),
    "audiofolder, one split": lambda root, r: write_folder(root, r, "csv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_alike(tmp_path, layout):
    LAYOUTS[layout](tmp_path, rows())
    utterances = read(tmp_path)
    assert [u.text for u in utterances] == ["number 0", "number 1", "number 2"]
    assert [u.utterance_id for u in utterances] == [f"train-{i:08d}" for i in (1, 2, 3)]
    assert [u.speaker_id for u in utterances] == ["0", "1", "0"]
    assert [(u.age, u.sex, u.extra["accent"]) for u in utterances][1] == (21.0, "f", "x")
    for i, utterance in enumerate(utterances):
        expected = soundfile.read(io.BytesIO(sound(i)), dtype="float32")[0]
        np.testing.assert_array_equal(read_audio(utterance.audio_path), expected)
    assert read(tmp_path) == utterances


def test_splits_are_apart(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", rows(3))
    write_parquet(tmp_path / "test-0.parquet", rows(1))
    assert len(read(tmp_path, "train")) == 3 and len(read(tmp_path, "test")) == 1
    with pytest.raises(DataError, match="no validation split"):
        read(tmp_path, "validation")


def test_other_names_of_columns(tmp_path):
    renamed = [
        {"sound": r["audio"], "sentence": r["text"], "client": "c", "key": f"k{i}"}
        for i, r in enumerate(rows())
    ]
    write_parquet(tmp_path / "train-0.parquet", renamed)
    names = {"audio_column": "sound", "text_column": "sentence", "id_column": "key"}
    assert [u.utterance_id for u in read(tmp_path, speaker_column="client", **names)] == [
        "k0",
        "k1",
        "k2",
    ]
    utterances = read(tmp_path, speaker_column="", **names)
    assert [u.speaker_id for u in utterances] == ["k0", "k1", "k2"]
    with pytest.raises(
        DataError, match="no column audio, text, speaker_id; it has sound, sentence"
    ):
        read(tmp_path)


def test_every_bad_row_is_listed(tmp_path):
    bad = rows(4)
    bad[0]["text"] = "  "
    bad[1]["speaker_id"] = None
    bad[2]["audio"] = {"bytes": None, "path": "none.wav"}
    bad[3]["audio"] = {"bytes": None, "path": None}
    write_parquet(tmp_path / "train-0.parquet", bad)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    for part in (
        "row 1: 'text' is '  '",
        "row 2: 'speaker_id'",
        "row 3: no audio file",
        "row 4: no audio",
    ):
        assert part in str(caught.value)


def test_ids_that_occur_twice(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", rows(3))
    with pytest.raises(DataError, match="row 2: 'accent' 'x' occurs before"):
        read(tmp_path, id_column="accent")


def test_embedded_audio_is_written_once_and_whole(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train-0.parquet", rows(2))
    with pytest.raises(ConfigError, match="cache_dir"):
        read(tmp_path, cache_dir="")

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(CacheError, match="No space left"):
        patch.setattr(huggingface.os, "replace", full)
        read(tmp_path)
    assert not list((tmp_path / "cache").iterdir())
    read(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    read(tmp_path)
    assert len(before) == 2
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}


def test_damaged_files_and_missing_folders(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 but not really")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"train-0\.parquet: cannot read"):
        read(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="'dev'"):
        read(tmp_path, "dev")


def test_without_pyarrow(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train-0.parquet", rows(1))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        read(tmp_path)
