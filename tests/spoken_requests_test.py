"""The list of requests, what counts as a right answer, and the whole task in miniature."""

import json

import numpy as np
import pytest

from tests import tiny_world
from tests.datasets.datasets_synthetic_test import FakeEngine
from tiny_align_jax import spoken_requests, synthesize
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.spoken_requests import Request
from tiny_align_jax.types import ConfigError, DataError, Utterance

LIST = spoken_requests.load()


def test_the_list_is_long_short_and_checkable():
    assert len(LIST) >= 200 and len({spoken_form(r.text) for r in LIST}) == len(LIST)
    assert {r.kind for r in LIST} == {
        "arithmetic", "capital", "opposite", "yes_no", "fact", "command"
    }  # fmt: skip
    for request in LIST:
        assert len(request.text.split()) <= 11 and all(request.answers)
        assert all(spoken_requests.is_right(request, answer) for answer in request.answers)
        assert all(answer == answer.lower() for answer in request.answers)
    share = np.mean([r.answers[0] == "yes" for r in LIST if r.kind == "yes_no"])
    assert share == 0.5  # always saying yes earns nothing


def test_examples_give_no_answer_away():
    texts = {spoken_form(r.text) for r in LIST}
    for prompts in spoken_requests.STYLES.values():
        for prompt in prompts:
            assert not {spoken_form(asked) for asked, _ in prompt.examples} & texts


@pytest.mark.parametrize(
    ("kind", "answers", "said", "right"),
    [
        ("arithmetic", ("5", "five"), "It is five.", True),
        ("arithmetic", ("5", "five"), "fifty-five", False),
        ("capital", ("paris",), "The capital of France is Paris!", True),
        ("capital", ("rome",), "Romeo", False),
        ("yes_no", ("no",), "No, it is not. Yes would be wrong.", True),
        ("yes_no", ("no",), "Yes and no.", False),
        ("yes_no", ("no",), "I know nothing", False),
        ("command", ("light off",), "light off", True),
        ("command", ("light off",), "light on, light off, volume up", False),
        ("command", ("stop",), "", False),
    ],
)
def test_what_is_right(kind, answers, said, right):
    assert spoken_requests.is_right(Request(kind, "", answers), said) is right


def test_strangers_are_named():
    said = Utterance("u", "u.wav", "Sing a song about me.", "s")
    with pytest.raises(DataError, match="Sing a song about me"):
        spoken_requests.match([said])
    with pytest.raises(ConfigError, match=r"unknown instruction.*loud.*question alone"):
        spoken_requests.Config(styles=("loud",))


def test_spoken_heard_asked_and_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "find_engine", lambda engine, voice: FakeEngine())
    monkeypatch.setattr(spoken_requests, "load", lambda: (LIST[0], LIST[36], LIST[-1]))
    world = tiny_world.make(tmp_path)
    spoken = spoken_requests.speak(["piper:a", "flite:b"], tmp_path / "spoken")
    assert [u.text for u in spoken] == [LIST[0].text, LIST[36].text, LIST[-1].text]
    assert len({u.speaker_id for u in spoken}) == 3
    aligner = Aligner.load(world.workdir, world.cache_dir, need_llm=True)
    config = spoken_requests.Config(
        styles=("question alone",), snaps=("retokenize", "none"), max_new_tokens=2
    )
    found = spoken_requests.ask(aligner, str(world.cache_dir), spoken, config)
    assert [row["system"] for row in found["rows"]] == ["oracle", "retokenize", "none"]
    oracle = found["rows"][0]
    assert oracle["same_as_text"] == 1.0 and oracle["rouge1_to_text"] in (0.0, 1.0)
    assert set(oracle["by_kind"]) == {LIST[0].kind, LIST[36].kind, LIST[-1].kind}
    path = spoken_requests.write(found, tmp_path / "out")
    assert json.loads(path.read_text())["num_recordings"] == 3
    lines = path.with_suffix(".md").read_text().splitlines()
    assert len({line.count("|") for line in lines[2:]}) == 1 and len(lines) == 7
