"""Sentences that never leak between splits, and recordings that are made once, whole and the same."""

import collections
import dataclasses
import os
import pathlib
import re
import stat

import numpy as np
import pytest
import soundfile

from tiny_align_jax import synthesize
from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import _sentences, jsonl, synthetic
from tiny_align_jax.types import AssetError, CacheError, ConfigError, DataError


class FakeEngine:
    """Speaks a tone a word; its 'random numbers' depend on the seed and on what was spoken before."""

    fingerprint = "fake 1"

    def __init__(self):
        self.spoken = []

    def session(self, seed):
        rng = np.random.default_rng(seed)

        def speak(text, speaker):
            self.spoken.append(text)
            time_s = np.arange(2205 * len(text.split())) / 22050
            tone = np.sin(2 * np.pi * 200 * time_s) + rng.normal(0, 0.01, len(time_s))
            return tone.astype(np.float32), 22050 * speaker.pitch

        return speak


@pytest.fixture
def engine(monkeypatch):
    fake = FakeEngine()
    monkeypatch.setattr(synthesize, "find_engine", lambda engine, voice: fake)
    return fake


@pytest.fixture
def config(tmp_path):
    return synthetic.Config(
        cache_dir=str(tmp_path), num_train=70, num_validation=5, num_test=9, progress=False
    )


# --- sentences


@pytest.fixture(scope="module")
def sentences():
    counts = {"train": 400, "validation": 40, "test": 60}
    return {split: _sentences.generate(split, count, 0) for split, count in counts.items()}


def words_of(texts):
    return collections.Counter(
        word for text in texts for word in _sentences.normalized(text).split()
    )


def test_no_sentence_is_in_two_splits_whatever_the_seed(sentences):
    seen = {}
    for seed in (0, 1, 2):
        for split in synthetic.SPLITS:
            for text in _sentences.generate(split, 500, seed):
                assert seen.setdefault(_sentences.normalized(text), split) == split


def test_punctuation_and_case_do_not_make_another_sentence():
    assert _sentences.split_of("Call Ben at the bank.") == _sentences.split_of(
        "call ben at the BANK"
    )


def test_sentences_are_the_same_for_a_seed_and_others_for_another(sentences):
    assert _sentences.generate("train", 400, 0) == sentences["train"]
    assert _sentences.generate("train", 50, 0) == sentences["train"][:50]
    assert _sentences.generate("train", 400, 1) != sentences["train"]


def test_the_words_are_many_and_test_words_occur_in_training(sentences):
    train, test = words_of(sentences["train"]), words_of(sentences["test"])
    assert 400 <= len(train) <= 600
    unseen = set(test) - set(train)
    assert len(unseen) <= 0.02 * len(test)


def test_sentences_look_like_sentences(sentences):
    for text in sentences["train"]:
        assert re.fullmatch(r"[A-Z][A-Za-z ,]+[.?]", text), text
        assert 3 <= len(text.split()) <= 14
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower()), text
        nouns = re.findall(r"\b(?:and|or|to) (\w+)", text)
        assert len(nouns) == len(set(nouns)), text


def test_every_slot_has_words_and_all_words_have_a_slot():
    used = {slot for t in _sentences.TEMPLATES for slot in _sentences._SLOT.findall(t)} - {"a"}
    assert used == set(_sentences.DECKS)
    assert all(len(deck) == len(set(deck)) for deck in _sentences.DECKS.values())
    assert len(_sentences.TEMPLATES) == len(set(_sentences.TEMPLATES))


def test_too_many_sentences_are_refused(monkeypatch):
    monkeypatch.setattr(_sentences, "TEMPLATES", ("Turn {switch} the light.",))
    with pytest.raises(DataError, match="asked for"):
        _sentences.generate("train", 10, 0)


def test_sentences_of_a_text_file(config, tmp_path):
    text = [f"This is sentence number {i}." for i in range(300)]
    (tmp_path / "text.txt").write_text("\n".join(["", *text, text[0].upper()]))
    config = dataclasses.replace(config, sentences=str(tmp_path / "text.txt"))
    plans = {
        split: [line.text for line in synthetic.plan(config, split)] for split in synthetic.SPLITS
    }
    assert [len(plan) for plan in plans.values()] == [70, 5, 9]
    assert len({text for plan in plans.values() for text in plan}) == 84
    assert all(_sentences.split_of(text) == split for split in plans for text in plans[split])
    with pytest.raises(DataError, match="asked for"):
        synthetic.plan(dataclasses.replace(config, num_train=1000), "train")
    with pytest.raises(DataError, match="cannot be read"):
        synthetic.plan(dataclasses.replace(config, sentences="none.txt"), "train")


# --- the corpus


def test_a_split_is_spoken_once_and_read_again(engine, config):
    utterances = synthetic.read(config, "train")
    assert len(utterances) == 70 and sorted(engine.spoken) == sorted(u.text for u in utterances)
    assert [u.utterance_id for u in utterances] == [f"train-{i:05d}" for i in range(70)]
    assert len({u.speaker_id for u in utterances}) == config.num_speakers
    assert synthetic.read(config, "train") == utterances and len(engine.spoken) == 70


def test_recordings_are_sound_audio_and_a_manifest_that_others_read(engine, config):
    utterances = synthetic.read(config, "test")
    for utterance in utterances:
        waveform_S = read_audio(utterance.audio_path)
        assert 0.2 < np.abs(waveform_S).max() <= 1.0
        assert soundfile.info(utterance.audio_path).samplerate == 16000
    manifest = pathlib.Path(utterances[0].audio_path).parent / synthetic.MANIFEST
    assert not jsonl.validate(jsonl.Config(manifest=str(manifest)), read_audio)


def test_another_config_is_another_folder(engine, config):
    first = synthetic.read(config, "test")
    for change in ({"seed": 1}, {"num_speakers": 2}, {"num_test": 8}):
        other = synthetic.read(dataclasses.replace(config, **change), "test")
        assert not {u.audio_path for u in first} & {u.audio_path for u in other}
    same = synthetic.read(dataclasses.replace(config, num_train=3, progress=True), "test")
    assert same == first


def test_an_interrupted_rendering_ends_in_the_same_samples(engine, config, tmp_path, monkeypatch):
    whole = synthetic.read(dataclasses.replace(config, cache_dir=str(tmp_path / "whole")), "train")
    spoken = []

    def interrupted(path, whole_file=synthesize.whole_file):
        spoken.append(path)
        if len(spoken) == 68:
            raise KeyboardInterrupt
        return whole_file(path)

    monkeypatch.setattr(synthesize, "whole_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.read(config, "train")
    monkeypatch.undo()
    monkeypatch.setattr(synthesize, "find_engine", lambda e, v: engine)
    engine.spoken.clear()
    again = synthetic.read(config, "train")
    assert 0 < len(engine.spoken) < 70
    for first, second in zip(whole, again, strict=True):
        np.testing.assert_array_equal(read_audio(first.audio_path), read_audio(second.audio_path))


def test_a_full_disk_says_what_to_do(engine, config, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CacheError, match="free some space") as caught:
        synthetic.read(config, "test")
    assert "No space left" in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr(synthesize, "find_engine", lambda e, v: engine)
    assert len(synthetic.read(config, "test")) == 9


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"cache_dir": ""}, ConfigError, "cache_dir"),
        ({"num_train": 0}, ConfigError, "num_train=0"),
        ({"num_speakers": 0}, ConfigError, "num_speakers"),
    ],
)
def test_configs_that_cannot_work(engine, config, change, error, word):
    with pytest.raises(error, match=word):
        synthetic.read(dataclasses.replace(config, **change), "train")
    with pytest.raises(DataError, match="'dev'"):
        synthetic.read(config, "dev")


# --- speaking


def test_speakers_differ_and_stay_within_reason():
    speakers = synthesize.speakers(12)
    assert len({s.name for s in speakers}) == len({s.pitch for s in speakers}) == 12
    assert all(0.8 < s.pitch < 1.3 and 0.8 < s.tempo < 1.2 for s in speakers)
    assert synthesize.speakers(3) == speakers[:3]


def test_pitch_moves_the_tone_and_gain_the_loudness(tmp_path):
    def peak_hz(speaker):
        (path,) = synthesize.render(
            [synthesize.Line("x", "one two three four", speaker)],
            FakeEngine(),
            tmp_path / speaker.name,
        )
        waveform_S = read_audio(path)
        assert np.abs(waveform_S).max() == pytest.approx(10 ** (speaker.gain_db / 20), abs=0.01)
        return np.abs(np.fft.rfft(waveform_S)).argmax() * 16000 / len(waveform_S)

    assert peak_hz(synthesize.Speaker("a", pitch=1.0)) == pytest.approx(200, abs=3)
    assert peak_hz(synthesize.Speaker("b", pitch=1.2, gain_db=-9.0)) == pytest.approx(240, abs=3)


def test_nothing_to_speak(tmp_path):
    with pytest.raises(DataError, match=r"x: nothing to speak in ''"):
        line = synthesize.Line("x", "", synthesize.Speaker("a"))
        synthesize.render([line], FakeEngine(), tmp_path)


def test_missing_voice_or_program_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for engine in ("auto", "piper"):
        with pytest.raises(AssetError, match="fetch_assets"):
            synthesize.find_engine(engine, tmp_path)
    with pytest.raises(AssetError, match="no espeak-ng"):
        synthesize.find_engine("espeak-ng", "")
    with pytest.raises(ConfigError, match="'festival'"):
        synthesize.find_engine("festival", "")


def fake_program(folder, body):
    """An espeak-ng on the PATH that runs `body`."""
    program = folder / "espeak-ng"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_espeak_is_called_with_speed_and_text_and_takes_pipers_place(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "said.wav", np.sin(np.arange(22050) / 20), 22050)
    fake_program(
        tmp_path,
        f'case "$1" in --version) echo "eSpeak NG 1.51 Data at: /x"; exit;; esac\n'
        f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/text; cat {tmp_path}/said.wav',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    engine = synthesize.find_engine("auto", tmp_path)
    assert engine.fingerprint == "eSpeak NG 1.51 en-us"
    speaker = synthesize.Speaker("a", pitch=1.1, tempo=1.0)
    synthesize.render([synthesize.Line("x", "Hello there.", speaker)], engine, tmp_path / "out")
    assert (tmp_path / "text").read_text() == "Hello there."
    assert (tmp_path / "arguments").read_text().split() == [
        "-v",
        "en-us",
        "--stdin",
        "--stdout",
        "-s",
        "150",
    ]
    assert len(read_audio(tmp_path / "out" / "x.flac")) == pytest.approx(16000 / 1.1 + 4800, abs=5)


def test_espeak_that_fails_is_quoted(tmp_path, monkeypatch):
    fake_program(tmp_path, 'case "$1" in --version) exit;; esac; echo "no such voice" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(AssetError, match="no such voice"):
        line = synthesize.Line("x", "Hello.", synthesize.Speaker("a"))
        synthesize.render([line], synthesize.find_engine("espeak-ng", "xx"), tmp_path)


@pytest.mark.weights
def test_the_real_voice_speaks_alike_each_time_and_not_alike_for_speakers(tmp_path):
    pytest.importorskip("piper")
    cache = os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align")
    voice = pathlib.Path(cache).expanduser() / "piper-en-us-joe-medium"
    if not voice.is_dir():
        pytest.skip("no voice in TINY_ALIGN_CACHE (python -m experiments.fetch_assets)")
    lines = [
        synthesize.Line(speaker.name, "Please turn on the kitchen light.", speaker)
        for speaker in synthesize.speakers(2)
    ]
    engine = synthesize.find_engine("piper", voice)
    first, second = (
        [read_audio(path) for path in synthesize.render(lines, engine, tmp_path / str(i))]
        for i in range(2)
    )
    for a_S, b_S in zip(first, second, strict=True):
        np.testing.assert_array_equal(a_S, b_S)
        assert 1.0 < len(a_S) / 16000 < 4.0
    assert len(first[0]) != len(first[1])
