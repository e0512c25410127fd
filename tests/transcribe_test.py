"""One recording: the same words as the evaluation, streamed; every kind of bad audio refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests import tiny_world
from tiny_align_jax import decode, evaluate, reading, reading_config, scoring, transcribe
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import prompts
from tiny_align_jax.types import AudioError, ConfigError

SHORT = decode.Config(max_new_tokens=8, batch_buckets=(1,), tail_buckets=(32,))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def loaded(world):
    return Aligner.load(world.workdir, world.cache_dir, need_llm=True)


@pytest.fixture(scope="module")
def transcriber(loaded):
    return transcribe.Transcriber(loaded, settings=SHORT)


def test_hears_and_answers_as_the_evaluation_does(world, loaded, transcriber):
    whole = evaluate.evaluate(
        loaded, world.cache_dir, settings=SHORT, scoring_config=scoring.Config(num_resamples=10)
    )
    for i in (0, 2, 5):
        transcript = transcriber(whole.utterances[i].audio_path)
        assert transcript.heard == whole.systems["heard"][i]
        assert transcript.answer == whole.systems["answer"][i]
        assert transcript.audio_s == pytest.approx([1.0, 1.25, 1.5][i % 3])


def test_callbacks_come_in_order_and_add_up(world, transcriber):
    events = []
    transcript = transcriber(
        world.audio / "s1_1.wav",
        on_heard=lambda text: events.append(("heard", text)),
        on_piece=lambda text: events.append(("piece", text)),
    )
    assert events[0] == ("heard", transcript.heard)
    assert "".join(text for kind, text in events[1:]).strip() == transcript.answer
    assert {kind for kind, _ in events[1:]} == {"piece"}
    laps = list(transcript.seconds.values())
    assert list(transcript.seconds) == ["encoded", "heard", "first_token", "done"]
    assert laps == sorted(laps)


def test_nothing_of_the_recording_is_kept(world, transcriber, tmp_path):
    samples = np.random.default_rng(9).normal(size=9000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "new.flac", samples, 16000)
    before = sorted(p.stat().st_mtime_ns for p in world.cache_dir.rglob("*"))
    transcriber(tmp_path / "new.flac")
    assert sorted(p.stat().st_mtime_ns for p in world.cache_dir.rglob("*")) == before


def test_without_llm(world):
    deaf = Aligner.load(world.workdir, world.cache_dir, need_llm=False)
    transcript = transcribe.Transcriber(deaf)(world.audio / "s1_0.wav")
    assert transcript.answer is None
    assert "first_token" not in transcript.seconds


def test_an_own_instruction(world, loaded, transcriber):
    asked = transcribe.Transcriber(loaded, prompts.from_instruction("please bring apples"), SHORT)
    ours = asked(world.audio / "s1_0.wav")
    assert ours.heard == transcriber(world.audio / "s1_0.wav").heard
    assert ours.answer != transcriber(world.audio / "s1_0.wav").answer


def test_a_reader_reads_and_the_llm_answers_its_text(world, loaded, transcriber):
    how = reading_config.Config(method="beam", ngram_weight=0.0, row_bonus=-5.0)
    reader = reading.Reader(loaded, how)
    read = transcribe.Transcriber(loaded, settings=SHORT, reader=reader)(world.audio / "s1_1.wav")
    plain = transcriber(world.audio / "s1_1.wav")
    assert len(read.heard) < len(plain.heard)  # every row costs 5 nats
    (asked,) = loaded.responder(settings=SHORT).answer([loaded.embed_text(read.heard)])
    assert read.answer == asked.text
    with pytest.raises(ConfigError, match="'soft'"):
        transcribe.Transcriber(loaded, snap="soft", reader=reader)


def test_unknown_snap_is_refused_at_once(loaded):
    with pytest.raises(ConfigError, match="'hard'"):
        transcribe.Transcriber(loaded, settings=SHORT, snap="hard")


def _bad_audio(kind, path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=16000).astype(np.float32) * 0.1
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, noise[:0], 16000)
    elif kind == "silent":
        soundfile.write(path, noise * 0, 16000)
    elif kind == "ten minutes":
        soundfile.write(path, np.tile(noise[:8000], 1200), 8000)
    elif kind == "longer than the window":
        soundfile.write(path, np.tile(noise, 3), 16000)
    elif kind == "nan":
        noise[100] = np.nan
        soundfile.write(path, noise, 16000, subtype="FLOAT")
    elif kind == "text":
        path.write_text("not audio")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such audio file"),
        ("empty file", "empty"),
        ("no samples", "no samples|empty"),
        ("silent", "silent"),
        ("ten minutes", "600"),
        ("longer than the window", "3.00 s long, the window is 2.00 s"),
        ("nan", "NaN"),
        ("text", "bad.wav"),
    ],
)
def test_bad_audio(transcriber, tmp_path, kind, message):
    path = tmp_path / "bad.wav"
    _bad_audio(kind, path)
    with pytest.raises(AudioError, match=message):
        transcriber(path)


def _run(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def flags(world):
    return [f"--workdir={world.workdir}", f"--cache_dir={world.cache_dir}"]


def test_command_line_json(world, flags):
    audio = world.audio / "s1_0.wav"
    done = _run("experiments.transcribe", *flags, f"--audio={audio}", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["heard"]
    assert printed["seconds"]["first_token"] > 0
    assert printed["audio_s"] == 1.0


def test_command_line_error_is_one_clear_line(flags, tmp_path):
    done = _run("experiments.transcribe", *flags, f"--audio={tmp_path}/none.wav")
    assert done.returncode == 2
    assert "none.wav: no such audio file" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_command_line_evaluation(flags, tmp_path):
    done = _run("experiments.evaluate", *flags, f"--out={tmp_path}", "--use_llm=false")
    assert done.returncode == 0, done.stderr
    assert "heard (no LLM)" in done.stdout
    assert (tmp_path / "metrics.no_llm.json").is_file()


@pytest.mark.parametrize("name", ["evaluate", "transcribe"])
def test_help_needs_nothing(name):
    done = _run(f"experiments.{name}", "--help")
    assert "--workdir" in done.stdout
    assert f"python -m experiments.{name}" in done.stdout
