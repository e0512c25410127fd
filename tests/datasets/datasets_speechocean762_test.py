"""The corpus's tables, their faults, and the corpus itself where it is at hand."""

import collections
import os
import pathlib

import pytest

from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import speechocean762
from tiny_align_jax.types import DataError

ROWS = {
    "wav.scp": "u2\tWAVE/S1/u2.WAV\nu1\tWAVE/S1/u1.WAV\nu3\tWAVE/S2/u3.WAV\n",
    "text": "u1\tWE CALL IT BEAR\nu2\tA CAT\nu3\tTWO SIX\n",
    "utt2spk": "u1\tS1\nu2\tS1\nu3 S2\n",
    "spk2age": "S1\t6\nS2\t31\n",
    "spk2gender": "S1\tm\nS2\tf\n",
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train").mkdir()
    for name, text in ROWS.items():
        (tmp_path / "train" / name).write_text(text)
    return tmp_path


def read(root):
    return speechocean762.read(speechocean762.Config(root=str(root)), "train")


def test_rows_are_joined_and_sorted(root):
    utterances = read(root)
    assert [u.utterance_id for u in utterances] == ["u1", "u2", "u3"]
    first, last = utterances[0], utterances[-1]
    assert first.text == "WE CALL IT BEAR" and first.speaker_id == "S1"
    assert first.audio_path == str(root / "WAVE/S1/u1.WAV")
    assert (first.age, first.sex, last.age, last.sex) == (6.0, "m", 31.0, "f")


def test_missing_root_says_how_to_get_the_corpus(tmp_path):
    for root in ("", str(tmp_path / "none")):
        with pytest.raises(DataError, match=r"openslr\.org/101"):
            speechocean762.read(speechocean762.Config(root=root), "train")


def test_missing_table_is_named(root):
    (root / "train" / "spk2age").unlink()
    with pytest.raises(DataError, match="lacks train/spk2age"):
        read(root)


def test_unknown_split(root):
    with pytest.raises(DataError, match="'validation'"):
        speechocean762.read(speechocean762.Config(root=str(root)), "validation")


def test_every_contradiction_is_listed(root):
    (root / "train" / "text").write_text("u1\tA\nu1\tB\nu2\t\n")
    (root / "train" / "spk2age").write_text("S1\tsix\n")
    with pytest.raises(DataError) as caught:
        read(root)
    message = str(caught.value)
    for part in (
        "text:2: 'u1' occurs twice",
        "text:3: expected",
        "no row for 'u2'",
        "no row for 'u3'",
        "no row for 'S2'",
        "'six', expected years",
    ):
        assert part in message


@pytest.mark.data
def test_the_corpus():
    data = os.environ.get("TINY_ALIGN_DATA")
    if not data or not (pathlib.Path(data) / "speechocean762").is_dir():
        pytest.skip("TINY_ALIGN_DATA names no folder with speechocean762 (OpenSLR 101)")
    config = speechocean762.Config(root=str(pathlib.Path(data) / "speechocean762"))
    train, test = (speechocean762.read(config, split) for split in speechocean762.SPLITS)
    assert len(train) == 2500
    assert set(collections.Counter(u.speaker_id for u in train + test).values()) == {20}
    assert not {u.speaker_id for u in train} & {u.speaker_id for u in test}
    assert all(u.age is not None and 6 <= u.age <= 43 and u.sex in ("f", "m") for u in train + test)
    assert 1.0 < len(read_audio(train[0].audio_path)) / 16000 < 10.0
