"""Robustness: every condition on the same utterances, clean equal to the evaluation, nothing left behind."""

import dataclasses
import tempfile

import pytest

from tests import tiny_world
from tiny_align_jax import evaluate, robustness, scoring
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.types import ConfigError

FEW = robustness.Config(snrs_db=(0.0,), noises=("pink",), rt60s_s=(0.3,))
QUICK = scoring.Config(num_resamples=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def aligner(world):
    return Aligner.load(world.workdir, world.cache_dir, need_llm=False)


def test_a_row_a_condition_and_clean_is_the_evaluation(world, aligner, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = robustness.measure(aligner, world.cache_dir, FEW, QUICK)
    rows = found["conditions"]
    assert list(rows) == ["clean", "pink 0 dB", "reverb 0.3 s"]
    plain = evaluate.evaluate(
        aligner, world.cache_dir, evaluate.Config(use_llm=False), scoring_config=QUICK
    )
    for normalizer, scores in plain.metrics["normalizers"].items():
        assert rows["clean"]["scores"][normalizer] == scores["scores"]["heard"]["all"]
    assert len({row["num_utterances"] for row in rows.values()}) == 1
    assert not list(tmp_path.iterdir())
    few = dataclasses.replace(FEW, noises=(), rt60s_s=(0.3,))
    shared = str(tmp_path / "shared")
    for _ in range(2):  # the second run reads what the first encoded
        again = robustness.measure(aligner, world.cache_dir, few, QUICK, features_dir=shared)
        assert again["conditions"]["reverb 0.3 s"] == rows["reverb 0.3 s"]
    text = robustness.table({"a": found, "b": found}, "lower")
    assert text.count("\n") == 4 and "| pink 0 dB |" in text
    robustness.plot({"a": found}, "lower", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_babble_is_made_of_four_of_the_given_voices(aligner):
    utterances = evaluate.corpus.read_split(aligner.config).test
    config = robustness.Config(snrs_db=(5.0,), noises=("babble",), rt60s_s=())
    found = robustness.conditions(config, utterances, utterances[:4])["babble 5 dB"]
    voices = {u.audio_path for u in utterances[:4]}
    for original, copy in zip(utterances, found, strict=True):
        kind, snr_db, files = copy.distortion.split(":", 2)
        assert (kind, snr_db, set(files.split("|"))) == ("babble", "5", voices)
        assert dataclasses.replace(copy, distortion="") == original
    with pytest.raises(ConfigError, match="babble needs 4"):
        robustness.conditions(config, utterances, utterances[:3])
