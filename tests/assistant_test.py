"""The whole assistant in miniature, its LLM in int8: learns a voice, answers, and counts what it takes."""

import dataclasses
import json

import pytest

from configs import personalize
from tests import tiny_world
from tiny_align_jax import assistant
from tiny_align_jax.aligner import CONFIG_FILE, Aligner
from tiny_align_jax.benchmark_sizes import DecodeShape
from tiny_align_jax.types import DataError


def test_one_process_learns_a_voice_and_answers(tmp_path, monkeypatch):
    world = tiny_world.make(tmp_path)
    path = world.workdir / CONFIG_FILE
    config = json.loads(path.read_text())
    config["split"] |= {"validation": "test", "test": ""}
    path.write_text(json.dumps(config))
    workdir = assistant.copy(
        world.workdir, tmp_path / "out", str(world.cache_dir), {"llm": {"weights": "int8"}}
    )
    how = assistant.settings_of(json.loads(personalize.get_config("words").to_json_best_effort()))
    assert how.fit.num_steps == 10
    how = dataclasses.replace(how, adapt=dataclasses.replace(how.adapt, num_validation=1))
    monkeypatch.setattr(assistant, "_SPEED", DecodeShape(2, 2))
    base = Aligner.load(workdir, world.cache_dir, need_llm=False)
    with pytest.raises(DataError, match="has 3 utterances; expected 15"):
        assistant.said(base)
    monkeypatch.setattr(assistant, "_NUM_LEARNT", 2)
    monkeypatch.setattr(assistant, "QUESTION_S", 1.2)
    found = assistant.prove(workdir, str(world.cache_dir), how, 4)
    peaks = list(found["peak_bytes"].values())
    assert peaks == sorted(peaks) and len(peaks) == 6
    assert found["held"] == {"encoder": "float", "llm": "int8-g32-int8"}
    assert found["question_s"] == pytest.approx(1.25)  # of 1.0, 1.25 and 1.5 s the nearest
    assert min(found["tokens_per_s"].values()) > 0 and found["llm_bytes"] < 100_000
    text = assistant.describe(found, 10**9, "watchdog", peaks[-1])
    assert "limit 1000 MB" in text and "a question of 1.2 s" in text
