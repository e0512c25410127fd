"""Tuning: the weights that pay are found, on one half of the speakers at a time, and kept."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import language, reading, reading_config, reading_tune
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.candidates import Candidate
from tiny_align_jax.types import ConfigError, Utterance

GRID = reading_tune.Config(
    llm_weights=(0.0, 0.5, 1.0), ngram_weights=(0.0,), row_bonuses=(0.0, 1.0), num_best=4
)
HOW = reading_config.Config(method="rescore", ngram_weight=0.0)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """One padded shape instead of many: what differs is only how long tests compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "_LENGTHS", (32,))
        patch.setattr(language, "_BATCH_SIZES", {"cpu": (32,), "accelerator": (32,)})
        yield


def _utterances(texts):
    return [Utterance(f"u{i}", "", t, f"s{i % 4}") for i, t in enumerate(texts)]


def _fit(found, utterances, config=GRID):
    return reading_tune._fit(
        config, HOW, reading_tune._table(config, found, utterances), seconds=0.1
    )


def test_the_llm_is_trusted_where_it_knows_better():
    # CTC prefers a wrong word by 1 nat, the LLM the right one by 4.
    utterances = _utterances(["seven green apples"] * 8)
    found = [
        [Candidate("seven greed apples", 3, -1.0, llm=-14.0), Candidate(u.text, 3, -2.0, llm=-10.0)]
        for u in utterances
    ]
    row = _fit(found, utterances)
    assert (row.wer, row.held_out, row.best_of_n) == (0, 0, 0)
    assert row.config.llm_weight >= 0.5
    assert row.config.row_bonus == 0.0  # of equals, the first of the grid


def test_held_out_errors_are_of_weights_that_did_not_see_them():
    # The two halves of the speakers want opposite weights; neither can know the other's.
    utterances = _utterances(["a b"] * 8)
    good, bad = Candidate("a b", 2, -2.0, llm=-1.0), Candidate("a c", 2, -1.0, llm=-9.0)
    trusting = [good, bad]
    betrayed = [Candidate("a b", 2, -1.0, llm=-9.0), Candidate("a c", 2, -2.0, llm=-1.0)]
    found = [betrayed if i % 2 else trusting for i in range(8)]
    row = _fit(found, utterances)
    assert row.wer == 0.25  # one of two words in half of the utterances
    assert row.held_out == 0.5
    assert row.best_of_n == 0


def test_a_lucky_point_among_bad_ones_is_not_chosen():
    errors = np.array([9.0, 0.0, 9.0, 9.0, 4.0, 3.0, 4.0])
    assert reading_tune._smooth(errors).argmin() == 5
    np.testing.assert_allclose(reading_tune._smooth(np.ones((2, 1, 3))), 1.0)


def test_consensus_is_kept_only_if_it_saves_errors():
    utterances = _utterances(["a b c d"] * 4)
    texts = ("q r s t", "a b c d", "a b x d", "a b c y")
    found = [[Candidate(t, 4, -1.0 - 0.1 * i) for i, t in enumerate(texts)] for _ in utterances]
    row = _fit(found, utterances)
    assert row.config.consensus > 0
    assert row.wer == 0
    without = _fit(found, utterances, dataclasses.replace(GRID, consensus=(0.0,)))
    assert (without.wer, without.config.consensus) == (1.0, 0.0)


def test_a_whole_tuning_gives_settings_that_load(tmp_path):
    world = tiny_world.make(tmp_path)
    aligner = Aligner.load(world.workdir, world.cache_dir, need_llm=True)
    rng = np.random.default_rng(0)
    width = aligner.card["encoder"]["dim"]
    frames = [rng.normal(size=(n, width)).astype(np.float32) for n in (20, 24)]
    utterances = _utterances(tiny_world.SENTENCES[:2])
    config = dataclasses.replace(GRID, contexts=(2,), ngram_weights=(0.0, 0.5))
    seen = []
    rows = reading_tune.tune(
        aligner, frames, utterances, tiny_world.SENTENCES, config, on_row=seen.append
    )
    assert seen == rows
    assert [r.config.method for r in rows] == ["beam", "rescore", "fusion"]
    assert all(r.best_of_n <= r.wer for r in rows)
    report = reading_tune.report(rows, 0.9, {"num_utterances": 2})
    (world.workdir / reading_config.FILE).write_text(json.dumps(report))
    assert reading_config.load_config(world.workdir, "rescore") == rows[1].config
    assert reading_tune.markdown(rows, 0.9).count("\n") == 2 + len(rows)
    for row in rows[:2]:  # who reads with fitted weights makes the errors that the fit counted
        heard = reading.Reader(aligner, row.config, tiny_world.SENTENCES).read(frames)
        assert reading_tune.corpus_wer(config, utterances, heard) == row.wer


def test_of_several_contexts_the_best_held_out_is_kept():
    rows = [
        reading_tune.Row(dataclasses.replace(HOW, context=n), 0.3, held_out, 0.2, 0.1)
        for n, held_out in ((0, 0.35), (8, 0.32), (32, 0.34))
    ]
    assert reading_tune.report(rows, 0.4, {})["methods"]["rescore"]["context"] == 8


def test_methods_that_cannot_be_tuned_are_refused():
    with pytest.raises(ConfigError, match="greedy"):
        reading_tune.Config(methods=("greedy",))
    with pytest.raises(ConfigError, match="tune both"):
        reading_tune.Config(methods=("fusion",))
