"""The cascade: real Whisper decoders read real speech; what was done is not done again; files are evaluate's."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")

from tests import tiny_world  # noqa: E402
from tests.train import world as train_world  # noqa: E402
from third_party.torch_baseline import cascade  # noqa: E402
from tiny_align_jax import evaluate, evaluation_report, scoring  # noqa: E402
from tiny_align_jax.data import audio  # noqa: E402
from tiny_align_jax.types import ConfigError  # noqa: E402
from tiny_align_jax.weights import folder as folders  # noqa: E402

pytestmark = pytest.mark.parity
QUICK = scoring.Config(num_resamples=20)
NO_LLM = cascade.Config(batch_size=2, max_new_tokens=6, use_llm=False)
RECORDING = "speechocean762/WAVE/SPEAKER0003/000030012.ogg"


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize("name, fallback", [("whisper-tiny.en", True), ("whisper-base", False)])
def test_real_decoders_read_real_speech(name, fallback, data_root, asset_cache):
    folder = folders.open_folder(asset_cache / name)
    whisper = cascade.Whisper(folder, "cpu", torch.float32, fallback)
    waveform = audio.read_audio(data_root / RECORDING)
    assert whisper.transcribe([waveform])[0].lower().startswith("mark is going to see")


class Echo:
    """Stands for Whisper: says how long a recording is, and remembers what it was asked."""

    asked: list[float]

    def __init__(self, *unused):
        pass

    def transcribe(self, waveforms):
        Echo.asked += [len(w) / 16_000 for w in waveforms]
        return ["Apples 1!" if len(w) > 18_000 else "" for w in waveforms]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Config and cache folder of a miniature whose third test recording is silent."""
    made = train_world.make(tmp_path)
    soundfile.write(tmp_path / "audio" / "t2.wav", np.zeros(20_000), 16_000)
    monkeypatch.setattr(cascade, "Whisper", Echo)
    Echo.asked = []
    return made


def run(world, workdir, settings=NO_LLM):
    config, cache_dir = world
    selection = evaluate.Config(use_llm=settings.use_llm)
    return cascade.run(config, workdir, cache_dir, settings, selection, QUICK)


def test_scores_and_files_are_those_of_an_evaluation(world, tmp_path):
    made = run(world, tmp_path / "out", dataclasses.replace(NO_LLM, use_llm=True))
    assert [u.speaker_id for u in made.utterances] == ["t"] * 3
    assert "silent" in str(made.metrics["skipped"])
    assert Echo.asked == sorted(Echo.asked), "batches hold neighbours in length"
    heard, answers = made.systems["heard"], made.systems["answer"]
    assert sorted(heard) == ["", "Apples 1!", "Apples 1!"]
    assert all(a == "" for h, a in zip(heard, answers, strict=True) if not h)
    row = made.metrics["normalizers"]["lower"]["scores"]["heard"]["all"]
    assert row["wer"]["value"] == pytest.approx(3 / 6, abs=1e-5)
    paths = evaluate.write(made, tmp_path / "out") | evaluation_report.write(made, tmp_path / "out")
    assert paths["predictions"].name == "predictions.jsonl"
    rows = [json.loads(line) for line in paths["predictions"].read_text().splitlines()]
    assert [r["heard"] for r in rows] == list(heard)
    assert {"id", "speaker", "age", "reference", "answer", "answer_cut"} <= set(rows[0])


def test_goes_on_where_it_stopped(world, tmp_path):
    whole = run(world, tmp_path / "a")
    lines = (tmp_path / "a" / cascade.TRANSCRIPTS_FILE).read_text().splitlines()
    assert sum('"id"' in line for line in lines) == len(Echo.asked) == 3
    (tmp_path / "b").mkdir()
    torn = "\n".join([*lines[:-1], lines[-1][:9]])
    (tmp_path / "b" / cascade.TRANSCRIPTS_FILE).write_text(torn)
    Echo.asked = []
    assert run(world, tmp_path / "b").systems == whole.systems
    assert len(Echo.asked) == 1, "only the torn line is heard again"


def test_transcripts_made_otherwise_are_refused(world, tmp_path):
    run(world, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"float32.*float16.*another --workdir"):
        run(world, tmp_path / "a", dataclasses.replace(NO_LLM, dtype="float16"))


def test_an_encoder_without_a_decoder_is_named(tmp_path):
    folder = tmp_path / "wavlm"
    tiny_world.make_encoder(folder, np.random.default_rng(0))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "wavlm"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"wavlm.*set encoder.asset to a Whisper"):
        cascade.Whisper(folders.open_folder(folder), "cpu", torch.float32)
