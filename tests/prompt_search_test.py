"""Comparing prompts: the noise, the scores, the table."""

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import decode, prompt_search
from tiny_align_jax.data import prompts, tokenizer
from tiny_align_jax.metrics import wer
from tiny_align_jax.responder import Llm
from tiny_align_jax.weights import assets, loading

TEXTS = [
    f"{a} {b} {c} number" for a in ("one", "two") for b in ("dog", "cat") for c in ("ran", "sat")
]


def test_noise_is_about_a_third_and_repeats_with_the_seed():
    texts = TEXTS * 40
    noisy = prompt_search.disturb(texts, seed=0)
    assert noisy == prompt_search.disturb(texts, seed=0) != prompt_search.disturb(texts, seed=1)
    assert all(noisy)
    assert 0.2 < wer.compute(wer.Config("lower"), texts, noisy)["wer"] < 0.45
    assert prompt_search.disturb(["a"] * 50, seed=0).count("") == 0


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    tiny_world.make_llm(folder, np.random.default_rng(0))
    loaded = loading.load_llm(assets.resolve(str(folder), folder.parent))
    return Llm(decode.LanguageModel(loaded.module, loaded.config), loaded.params), tokenizer.load(
        folder
    )


def test_every_candidate_is_scored_on_the_same_sentences(llm):
    candidates = {
        "plain": prompts.Config(instruction="Say: {audio}", examples=()),
        "shown": prompts.Config(instruction="Say: {audio}", examples=(("we call", "we call"),)),
    }
    seen = []
    settings = decode.Config(max_new_tokens=4, batch_buckets=(8,), tail_buckets=(32,))
    results = prompt_search.compare(*llm, candidates, TEXTS, settings, on_result=seen.append)
    assert results == seen
    assert [r.name for r in results] == ["plain", "shown"]
    assert results[1].prompt_tokens > results[0].prompt_tokens
    for result in results:
        assert set(result.scores) == {"clean", "noisy"}
        assert result.scores["clean"]["wer"] > 0.5  # random weights repeat nothing
        assert all(given in TEXTS for given, _ in result.misses["clean"])


def test_table_ranks_by_rouge():
    scores = lambda r: {k: {"wer": 0.1, "rouge1": r, "cut": 1} for k in ("clean", "noisy")}  # noqa: E731
    results = [prompt_search.Result(n, 9, scores(r), {}) for n, r in (("bad", 0.2), ("good", 0.9))]
    lines = prompt_search.table(results).splitlines()
    assert lines[2] == "| good | 9 | 0.100 | 0.900 | 0.100 | 0.900 | 2 |"
    assert lines[3].startswith("| bad |")


def test_candidates_are_sound_and_include_the_default():
    assert prompts.Config() in prompt_search.CANDIDATES.values()
    assert len({c for c in prompt_search.CANDIDATES.values()}) == len(prompt_search.CANDIDATES)
