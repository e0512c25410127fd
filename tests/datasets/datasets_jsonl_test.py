"""A manifest's schema, and that every bad row is named with file and line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import jsonl
from tiny_align_jax.types import DataError

GOOD = {"audio": "a.wav", "text": "Turn on the light.", "speaker": "anna"}


@pytest.fixture
def folder(tmp_path):
    tone = 0.3 * np.sin(np.arange(16000) / 10)
    for name in ("a.wav", "b.wav", "c.flac"):
        soundfile.write(tmp_path / name, tone, 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    return tmp_path


def manifest(folder, *rows, name="m.jsonl"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return jsonl.Config(manifest=str(folder / name))


def test_a_full_row_and_a_minimal_row(folder):
    full = GOOD | {
        "audio": "b.wav", "id": "u1", "start_s": 0.25, "end_s": 0.75, "age": 7, "sex": "f",
        "microphone": "phone", "take": 3,
    }  # fmt: skip
    first, second = jsonl.read(manifest(folder, full, GOOD), "train")
    assert (first.utterance_id, first.text, first.speaker_id) == ("a", GOOD["text"], "anna")
    assert (first.start_s, first.end_s, first.age, first.sex) == (0.0, None, None, None)
    assert (second.utterance_id, second.start_s, second.end_s) == ("u1", 0.25, 0.75)
    assert (second.age, second.sex) == (7.0, "f")
    assert second.extra == {"microphone": "phone", "take": "3"}
    assert len(read_audio(second.audio_path, second.start_s, second.end_s)) == 8000


def test_stretches_of_one_file_have_ids_of_their_own(folder):
    rows = [GOOD | {"start_s": 0.0, "end_s": 0.5}, GOOD | {"start_s": 0.5}]
    read = jsonl.read(manifest(folder, *rows), "train")
    assert [u.utterance_id for u in read] == ["a@0.000-0.500", "a@0.500-"]


def test_paths_start_at_the_manifest_or_at_root(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    config = manifest(elsewhere, GOOD)
    assert jsonl.validate(config)
    rooted = jsonl.Config(manifest=config.manifest, root=str(folder))
    assert jsonl.read(rooted, "train")[0].audio_path == str(folder / "a.wav")


def test_split_by_field(folder):
    config = manifest(folder, GOOD, GOOD | {"audio": "b.wav", "split": "test"})
    assert [u.utterance_id for u in jsonl.read(config, "train")] == ["a"]
    assert [u.utterance_id for u in jsonl.read(config, "test")] == ["b"]
    with pytest.raises(DataError, match="no utterance of split 'validation'"):
        jsonl.read(config, "validation")


def test_split_by_file(folder):
    manifest(folder, GOOD, name="train.jsonl")
    manifest(folder, GOOD | {"audio": "b.wav"}, name="test.jsonl")
    config = jsonl.Config(manifest=str(folder / "{split}.jsonl"))
    assert [u.utterance_id for u in jsonl.read(config, "test")] == ["b"]
    assert jsonl.num_rows(config) == 2
    manifest(folder, GOOD | {"audio": "b.wav", "split": "train"}, name="test.jsonl")
    assert "'train' in the file of split 'test'" in jsonl.validate(config)[0].message


BAD = [
    ("not json", "not JSON"),
    ("[1, 2]", "expected an object"),
    ({"audio": "a.wav", "text": "x"}, "'speaker' is missing"),
    (GOOD | {"text": "  "}, "'text' is '  '"),
    (GOOD | {"speaker": 7}, "'speaker' is 7"),
    (GOOD | {"audio": "none.wav"}, "none.wav"),
    (GOOD | {"start_s": -1}, "'start_s' is -1"),
    (GOOD | {"start_s": True}, "'start_s' is True"),
    (GOOD | {"start_s": 2, "end_s": 1}, "'end_s' is 1"),
    (GOOD | {"end_s": "1"}, "'end_s' is '1'"),
    (GOOD | {"age": 200}, "'age' is 200"),
    (GOOD | {"sex": "female"}, "'sex' is 'female'"),
    (GOOD | {"split": "dev"}, "'split' is 'dev'"),
    (GOOD | {"id": ""}, "'id' is ''"),
    (GOOD | {"begin_s": 1}, None),
    (GOOD | {"start": 1, "id": "x"}, "did you mean 'start_s'"),
]


@pytest.mark.parametrize("row, message", BAD)
def test_each_fault_is_found_on_its_line(folder, row, message):
    config = manifest(folder, GOOD | {"audio": "b.wav"}, "", row)
    problems = jsonl.validate(config)
    if message is None:
        assert not problems
        return
    assert [p.line for p in problems] == [3] and message in problems[0].message
    assert str(problems[0]).startswith(f"{config.manifest}:3: ")
    with pytest.raises(DataError, match=r"m\.jsonl:3"):
        jsonl.read(config, "train")


def test_every_fault_of_every_row_is_listed(folder):
    rows = [row for row, message in BAD if message]
    problems = jsonl.validate(manifest(folder, *rows, {"audio": ""}))
    assert {p.line for p in problems} == set(range(1, len(rows) + 2))
    assert len([p for p in problems if p.line == len(rows) + 1]) == 3


def test_an_id_that_occurs_twice_names_both_lines(folder):
    config = manifest(folder, GOOD, GOOD)
    (problem,) = jsonl.validate(config)
    assert problem.line == 2 and f"{config.manifest}:1" in problem.message


def test_bad_bytes_and_a_byte_order_mark(folder):
    config = manifest(folder, GOOD)
    content = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\n{"text": "\xff"}\n'
    (folder / "m.jsonl").write_bytes(content)
    (problem,) = jsonl.validate(config)
    assert problem.line == 2 and "not JSON" in problem.message


def test_audio_check_is_per_row(folder):
    config = manifest(folder, GOOD, GOOD | {"audio": "silent.wav"}, GOOD | {"id": "x", "end_s": 9})
    assert not jsonl.validate(config)
    problems = jsonl.validate(config, read_audio)
    assert [p.line for p in problems] == [2, 3]
    assert "silent" in problems[0].message and "before end_s" in problems[1].message


@pytest.mark.parametrize("path", ["", "none.jsonl", "none-{split}.jsonl"])
def test_no_manifest(tmp_path, path):
    config = jsonl.Config(manifest=str(tmp_path / path) if path else "")
    with pytest.raises(DataError, match="manifest"):
        jsonl.read(config, "train")


def test_unknown_split(folder):
    with pytest.raises(DataError, match="'dev'"):
        jsonl.read(manifest(folder, GOOD), "dev")


def test_command_prints_a_table_and_exits_non_zero(folder):
    def run(config):
        command = [sys.executable, "-m", "experiments.validate_manifest"]
        command.append(f"--manifest={config.manifest}")
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = run(manifest(folder, GOOD))
    assert (good.returncode, good.stdout) == (0, "1 row(s), 0 bad, 0 problem(s)\n")
    config = manifest(folder, GOOD, "{", GOOD | {"audio": "silent.wav"})
    bad = run(config)
    assert bad.returncode == 1
    lines = bad.stdout.splitlines()
    assert lines[0].startswith(f"{config.manifest}:2  not JSON")
    assert lines[1].startswith(f"{config.manifest}:3  ") and "silent" in lines[1]
    assert lines[2] == "3 row(s), 2 bad, 2 problem(s)"
    assert run(jsonl.Config(manifest="none.jsonl")).returncode == 1
