"""A text file as a spoken corpus: plan, files with time marks, interruption, archives, accents."""

import dataclasses
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tiny_align_jax import accents, spoken_corpus, synthesize
from tiny_align_jax.data.audio import read_audio
from tiny_align_jax.datasets import jsonl
from tiny_align_jax.types import AssetError, CacheError, ConfigError, DataError

SENTENCES = [f"this is sentence {'very ' * (i % 4)}number {i}" for i in range(11)]
CONFIG = spoken_corpus.Config(voices=("piper:x", "flite:y"), num_speakers=4, block=4, rooms=0.0)


class Tone:
    """Speaks a tone whose pitch says how many words the text has."""

    def __init__(self, name):
        self.fingerprint = name

    def session(self, seed):
        def speak(text, speaker):
            words = len(text.split())
            time_s = np.arange(4000 * words) / 16000
            return np.sin(2 * np.pi * 100 * words * time_s).astype(np.float32), 16000

        return speak


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    monkeypatch.setattr(synthesize, "find_engine", lambda engine, voice: Tone(engine))


def _speak(folder, config=CONFIG, sentences=SENTENCES):
    return spoken_corpus.speak(config, sentences, folder, num_workers=1, progress=False)


def test_every_sentence_is_planned_once_by_one_voice_a_block():
    blocks = spoken_corpus.plan(dataclasses.replace(CONFIG, rooms=1.0), ["", *SENTENCES])
    lines = [line for block in blocks for line in block]
    assert sorted(line.text for line in lines) == sorted(SENTENCES)
    assert len({line.utterance_id for line in lines}) == len(SENTENCES)
    assert all(len({line.voice for line in block}) == 1 and len(block) <= 4 for block in blocks)
    assert {line.voice for line in lines} == set(CONFIG.voices)
    assert all(line.distortion.startswith("reverb:") for line in lines)
    accents_heard = {
        s.accent for _, s in spoken_corpus.speakers(spoken_corpus.Config(("piper:x",)))
    }
    assert 0.0 in accents_heard and max(accents_heard) <= 0.8
    with pytest.raises(DataError, match="no sentence"):
        spoken_corpus.plan(CONFIG, [" ", ""])


def test_time_marks_cut_out_what_was_spoken(tmp_path):
    manifest = _speak(tmp_path)
    utterances = jsonl.read(jsonl.Config(str(manifest)), "train")
    assert sorted(u.text for u in utterances) == sorted(SENTENCES)
    for u in utterances:
        waveform_S = read_audio(u.audio_path, u.start_s, u.end_s)
        words = len(u.text.split())
        assert len(waveform_S) == pytest.approx(4000 * words + 4800, abs=2)
        spectrum = np.abs(np.fft.rfft(waveform_S))
        assert spectrum.argmax() * 16000 / len(waveform_S) == pytest.approx(100 * words, abs=3)
        loud = np.flatnonzero(np.abs(waveform_S) > 0.1)
        assert 2000 < loud[0] < 2800 and 2000 < len(waveform_S) - loud[-1] < 2800


def test_a_killed_run_goes_on_and_another_corpus_is_refused(tmp_path, monkeypatch):
    done = []

    def once(*task, real=spoken_corpus._speak_block):
        if done:
            raise KeyboardInterrupt
        done.append(task)
        return real(*task)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(spoken_corpus, "_speak_block", once)
        _speak(tmp_path)
    first = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.ogg")}
    assert len(first) == 1 and not (tmp_path / "manifest.jsonl").exists()
    assert len(spoken_corpus.collect(tmp_path).read_text().splitlines()) == len(done[0][1])
    with pytest.raises(DataError, match="no block"):
        spoken_corpus.collect(tmp_path / "none")
    _speak(tmp_path)
    assert all(p.stat().st_mtime_ns == when for p, when in first.items())
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == len(SENTENCES)
    with pytest.raises(CacheError, match="another spoken corpus"):
        _speak(tmp_path, dataclasses.replace(CONFIG, seed=1))


def test_rooms_are_heard_and_nothing_clips(tmp_path):
    dry = _speak(tmp_path / "dry")
    wet = _speak(tmp_path / "wet", dataclasses.replace(CONFIG, rooms=1.0))
    pairs = zip(*(jsonl.read(jsonl.Config(str(m)), "train") for m in (dry, wet)), strict=True)
    for a, b in pairs:
        a_S, b_S = (read_audio(u.audio_path, u.start_s, u.end_s) for u in (a, b))
        assert len(a_S) == len(b_S) and not np.allclose(a_S, b_S, atol=0.05)
        assert np.abs(b_S[:1500]).max() > 2 * np.abs(a_S[:1500]).max()  # noise where none spoke


def test_archives_hold_the_corpus_and_keep_to_their_size(tmp_path):
    _speak(tmp_path / "a")
    archives = spoken_corpus.pack(tmp_path / "a", 40_000)
    assert len(archives) > 1 and all(p.stat().st_size <= 40_000 for p in archives)
    for archive in archives:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path / "b", filter="data")
    assert len(jsonl.read(jsonl.Config(str(tmp_path / "b" / "manifest.jsonl")), "train")) == 11
    with pytest.raises(ConfigError, match="more than max_bytes"):
        spoken_corpus.pack(tmp_path / "a", 2000)
    with pytest.raises(DataError, match="speak the corpus first"):
        spoken_corpus.pack(tmp_path, 2000)


@pytest.mark.parametrize(
    "change, word",
    [({"voices": ()}, "voices"), ({"voices": ("x:y",)}, "x:y"), ({"rooms": 2.0}, "rooms=2.0"),
     ({"block": 0}, "block=0"), ({"bitrate_kbps": 1.0}, "bitrate_kbps=1.0")],
)  # fmt: skip
def test_configs_that_cannot_work(change, word):
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(CONFIG, **change)


def test_an_accent_changes_as_many_sounds_as_it_is_strong():
    said = list("ðə θɪn vɛst ɪz ˈɡʊd")  # noqa: RUF001
    rng = np.random.default_rng(0)
    assert accents.mandarin(said, 0.0, rng) == said
    assert "θ" not in accents.mandarin(said, 1.0, rng)
    weak, strong = (
        np.mean(["θ" not in accents.mandarin(said, s, rng) for _ in range(200)]) for s in (0.2, 0.8)
    )
    assert 0.1 < weak < 0.3 and 0.7 < strong < 0.9
    assert {"".join(accents.mandarin(list("bad"), 1.0, rng))[-1] for _ in range(60)} == set("tadə")


def test_flite_is_called_and_its_lack_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match="no flite program"):
        synthesize.Flite("slt")
    program = tmp_path / "flite"
    program.write_text(
        "#!/bin/sh\ncase $1 in -lv) echo 'Voices available: kal slt'; exit;; --version) exit;; esac\n"
        f'echo "$@" > {tmp_path}/arguments; {sys.executable} -c "import soundfile, numpy, sys; '
        'soundfile.write(sys.argv[1], numpy.ones(8000) / 2, 16000)" $8\n'
    )
    program.chmod(0o755)
    with pytest.raises(AssetError, match="no voice 'joe'"):
        synthesize.Flite("joe")
    speak = synthesize.Flite("slt").session(0)
    samples, rate_hz = speak("Hello.", synthesize.Speaker("a", pitch=1.2, tempo=0.8))
    assert len(samples) == 8000 and rate_hz == pytest.approx(19200)
    said = (tmp_path / "arguments").read_text()
    assert said.startswith("-voice slt --setf duration_stretch=1.500 -t Hello. -o ")


def test_worker_processes_give_what_one_process_gives(tmp_path):
    """Through the command, as a user calls it, with a voice that needs no weights."""
    program = tmp_path / "bin" / "espeak-ng"
    program.parent.mkdir()
    program.write_text(
        f'#!{sys.executable}\nimport io, sys, numpy, soundfile\nif "--version" in sys.argv: sys.exit()\n'
        "text = sys.stdin.read(); out = io.BytesIO()\n"
        "soundfile.write(out, numpy.sin(numpy.arange(2000 * len(text.split())) / 9), 16000, "
        "format='WAV')\nsys.stdout.buffer.write(out.getvalue())\n"
    )
    program.chmod(0o755)
    (tmp_path / "s.txt").write_text("one two\nthree four five\nsix\n")
    manifests = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        command = [
            sys.executable, "-m", "experiments.render_speech", f"--sentences={tmp_path}/s.txt",
            f"--out={out}", f"--num_workers={workers}", "--noprogress",
            '--set={"voices": ["espeak-ng:en-us"], "block": 2, "rooms": 0}',
        ]  # fmt: skip
        environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        manifests.append(rows)
    assert manifests[0] == manifests[1] and len(manifests[0]) == 3
