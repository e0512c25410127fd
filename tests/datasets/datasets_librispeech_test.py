"""LibriSpeech's layout in miniature."""

import numpy as np
import pytest
import soundfile

from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import librispeech
from tiny_align_jax.types import DataError

SPEAKERS = """; comment
84   | F | dev-clean        | 8.02  | Christie Nowak
174  | M | dev-clean        | 8.04  | Peter Eastman
"""
CHAPTERS = {
    "84/121": {"84-121-0001": "BEFORE NOW", "84-121-0000": "GO  DO YOU HEAR"},
    "174/50": {"174-50-0000": "AH"},
}


@pytest.fixture
def root(tmp_path):
    for chapter, lines in CHAPTERS.items():
        folder = tmp_path / "dev-clean" / chapter
        folder.mkdir(parents=True)
        for utterance_id in lines:
            soundfile.write(
                folder / f"{utterance_id}.flac", 0.3 * np.sin(np.arange(8000) / 9), 16000
            )
        text = "".join(f"{utterance_id} {text}\n" for utterance_id, text in lines.items())
        (folder / f"{chapter.replace('/', '-')}.trans.txt").write_text(text)
    (tmp_path / "SPEAKERS.TXT").write_text(SPEAKERS)
    return tmp_path


def read(root, split="dev-clean"):
    return librispeech.read(librispeech.Config(root=str(root)), split)


def test_rows(root):
    utterances = read(root)
    assert [u.utterance_id for u in utterances] == ["174-50-0000", "84-121-0000", "84-121-0001"]
    assert [(u.speaker_id, u.sex) for u in utterances] == [("174", "m"), ("84", "f"), ("84", "f")]
    assert utterances[1].text == "GO  DO YOU HEAR"
    assert len(read_audio(utterances[0].audio_path)) == 8000


def test_without_the_table_of_speakers(root):
    (root / "SPEAKERS.TXT").unlink()
    assert [u.sex for u in read(root)] == [None] * 3


def test_every_fault_is_listed(root):
    (root / "dev-clean/174/50/174-50-0000.flac").unlink()
    with open(root / "dev-clean/84/121/84-121.trans.txt", "a") as file:
        file.write("84-121-0002\nnonsense here\n")
    with open(root / "SPEAKERS.TXT", "a") as file:
        file.write("999 | X\n")
    with pytest.raises(DataError) as caught:
        read(root)
    for part in (
        "174-50.trans.txt:1: no audio file", "84-121.trans.txt:3: expected",
        "84-121.trans.txt:4: expected", "SPEAKERS.TXT:4: expected",
    ):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize("root", ["", "none"])
def test_missing_root_says_how_to_get_it(root):
    with pytest.raises(DataError, match=r"openslr\.org/12"):
        read(root)


def test_unknown_split(root):
    with pytest.raises(DataError, match=r"'train'.*train-clean-100"):
        read(root, "train")
