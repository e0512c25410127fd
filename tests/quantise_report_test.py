"""The report on quantised forms, over a whole miniature run."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import decode, quantise_report
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import loading

# Shapes of tests/evaluate_test.py, whose programs are compiled anyway.
SHORT = decode.Config(max_new_tokens=8, batch_buckets=(4,), tail_buckets=(32,))
CONFIG = quantise_report.Config(forms=("int8",), limit=0, answers=SHORT, speed=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def aligner(world):
    """Its test utterances as validation utterances: the miniature has no others."""
    loaded = Aligner.load(world.workdir, world.cache_dir, need_llm=False)
    split = {**loaded.config["split"], "validation": "test", "test": ""}
    return dataclasses.replace(loaded, config={**loaded.config, "split": split})


@pytest.fixture(scope="module")
def report(world, aligner):
    return quantise_report.run(aligner, str(world.cache_dir), CONFIG)


def test_every_form_has_its_own_bytes_and_scores(aligner, report):
    floats, int8 = report["forms"]
    assert (floats["name"], int8["name"]) == ("float32", "int8")
    assert report["num_utterances"] == 11 and report["split"] == "validation"
    loaded = loading.load_llm(aligner.llm_folder, np.float32, quantize.Config("int8"))
    assert int8["weight_bytes"] == quantise_report.tree_bytes(loaded.params)
    assert int8["weight_bytes"] < 0.4 * floats["weight_bytes"]
    # Untrained, it predicts about as badly as chance, and rounding changes that little.
    assert floats["perplexity"] > 50
    assert int8["perplexity"] == pytest.approx(floats["perplexity"], rel=0.2)
    assert int8["perplexity"] != floats["perplexity"]
    for kind in ("oracle", "heard"):
        change = int8[kind]["value"] - floats[kind]["value"]
        assert int8[f"{kind}_change"]["value"] == pytest.approx(change, abs=1e-4)


def test_the_encoder_in_int8_is_compared_by_its_frames(report):
    floats, int8 = report["encoder"]
    assert floats["frame_error"] == 0 and 0 < int8["frame_error"] < 0.1
    assert int8["weight_bytes"] < floats["weight_bytes"]
    change = int8["wer"]["value"] - floats["wer"]["value"]
    assert int8["wer_change"]["value"] == pytest.approx(change, abs=1e-4)


def test_files_hold_the_report(report, tmp_path):
    paths = quantise_report.write(report, str(tmp_path))
    assert json.loads(paths[0].read_text()) == report
    text = paths[1].read_text()
    speeds = [{"wall": 9.0, "core": 4.0}, {"wall": 11.0, "core": 12.0}]
    timed = [r | {"tokens_per_s": s} for r, s in zip(report["forms"], speeds, strict=True)]
    assert "| 11.0 | 12.0 | 3.00 |" in quantise_report.table(report | {"forms": timed})
    assert "| int8 |" in text and "11 validation utterances of 4 speakers" in text


def test_unknown_forms_are_refused():
    with pytest.raises(ConfigError, match=r"int3.*expected some of float32"):
        quantise_report.Config(forms=("int3",))
