"""Reading with help, on a whole miniature: every judge counts, and none changes what it should not."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import candidates, language, reading, reading_config
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.candidates import Candidate
from tiny_align_jax.types import ConfigError

PLAIN = reading_config.Config(
    method="beam", num_best=5, width=8, llm_weight=0, ngram_weight=0, row_bonus=0, context=2
)
WITH_LLM = dataclasses.replace(PLAIN, method="rescore", llm_weight=0.5)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """One padded shape instead of many: what differs is only how long tests compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "_LENGTHS", (32,))
        patch.setattr(language, "_BATCH_SIZES", {"cpu": (32,), "accelerator": (32,)})
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def loaded(world):
    return Aligner.load(world.workdir, world.cache_dir, need_llm=True)


@pytest.fixture(scope="module")
def frames(loaded):
    rng = np.random.default_rng(0)
    width = loaded.card["encoder"]["dim"]
    return [rng.normal(size=(n, width)).astype(np.float32) for n in (30, 17, 31)]


@pytest.fixture(scope="module")
def plain(loaded, frames):
    return reading.Reader(loaded, PLAIN).candidates(frames)


@pytest.fixture(scope="module")
def judged(loaded, frames):
    return reading.Reader(loaded, WITH_LLM, tiny_world.SENTENCES).candidates(frames)


def test_beam_finds_likelier_texts_than_greedy_reading(loaded, frames, plain):
    for one, found in zip(frames, plain, strict=True):
        hearing = loaded.hear(one[None], np.array([len(one)], np.int32))
        assert found[0].ctc >= float(hearing.reading.score_B[0]) - 1e-3
        assert len({c.text for c in found}) == len(found) <= 5
        assert found == candidates.ranked(found, PLAIN)


def test_the_llm_reorders_whole_texts(plain, judged):
    for before, after in zip(plain, judged, strict=True):
        assert {c.text for c in before} == {c.text for c in after}
        scores = [c.ctc + 0.5 * c.llm for c in after]
        assert scores == sorted(scores, reverse=True)
        assert all(c.llm < 0 for c in after)
    only = dataclasses.replace(WITH_LLM, llm_weight=1e6)
    favourite = max(judged[0], key=lambda c: c.llm)
    assert candidates.choose(candidates.ranked(judged[0], only), only) == favourite.text


def test_a_users_own_sentences_are_the_last_that_the_llm_sees(loaded, frames, judged, monkeypatch):
    shown = []
    real = language.LlmJudge
    monkeypatch.setattr(
        language,
        "LlmJudge",
        lambda llm, words, lines: shown.append(lines) or real(llm, words, lines),
    )
    own = dataclasses.replace(loaded, user_texts=("the green dog",))
    found = reading.Reader(own, WITH_LLM, tiny_world.SENTENCES).candidates(frames)
    assert shown[0][-1] == "the green dog" and len(shown[0]) > WITH_LLM.context
    assert [c.llm for c in found[0]] != [c.llm for c in judged[0]]


def test_a_users_change_of_frames_is_read_with(loaded, frames, plain):
    shift = np.full(loaded.card["encoder"]["dim"], 0.5, np.float32)
    own = dataclasses.replace(loaded, params={**loaded.params, "frames": {"shift": shift}})
    moved = [one + shift for one in frames]
    assert reading.Reader(own, PLAIN).candidates(frames) != plain
    np.testing.assert_allclose(
        [cs[0].ctc for cs in reading.Reader(own, PLAIN).candidates(frames)],
        [cs[0].ctc for cs in reading.Reader(loaded, PLAIN).candidates(moved)],
        rtol=1e-4,
    )


def test_fusion_scores_at_least_as_high_as_rescoring(loaded, frames, judged):
    config = dataclasses.replace(WITH_LLM, method="fusion")
    reader = reading.Reader(loaded, config, tiny_world.SENTENCES)
    for found, rescored in zip(reader.candidates(frames), judged, strict=True):
        best = candidates.score(found[0], config)
        assert best >= candidates.score(rescored[0], config) - 0.05
    assert set(reader.seconds) == {"hear", "search", "judge"}
    assert all(s > 0 for s in reader.seconds.values())


def test_ngrams_steer_towards_training_sentences(loaded, frames):
    config = dataclasses.replace(PLAIN, ngram_weight=50.0)
    reader = reading.Reader(loaded, config, ["we call it bear"])
    found = reader.candidates(frames)
    assert all(c.ngram < 0 for cs in found for c in cs)
    words = {w for c in found[0] for w in c.text.split()}
    assert words <= {"we", "call", "it", "bear"}


def test_a_second_projector_is_averaged_in(world, loaded, frames, plain):
    twice = reading.Reader(loaded, PLAIN, members=[loaded]).candidates(frames)
    for a, b in zip(twice, plain, strict=True):
        assert [c.text for c in a] == [c.text for c in b]
        np.testing.assert_allclose([c.ctc for c in a], [c.ctc for c in b], atol=1e-3)
    card = {**loaded.card, "encoder": {**loaded.card["encoder"], "window_s": 9.0}}
    other = dataclasses.replace(loaded, card=card)
    with pytest.raises(ConfigError, match="member 0 has another encoder window_s"):
        reading.Reader(loaded, PLAIN, members=[other])


def test_one_at_a_time_reads_the_same(loaded, frames, plain):
    reader = reading.Reader(loaded, PLAIN)
    assert [reader.read([f])[0] for f in frames] == [cs[0].text for cs in plain]


def test_consensus_takes_the_middle():
    texts = ["a b c d", "a b x d", "a b c y", "q r s t"]
    found = [Candidate(t, 4, ctc) for t, ctc in zip(texts, (-1.1, -1.2, -1.2, -1.0), strict=True)]
    best = dataclasses.replace(PLAIN, consensus=0.0)
    middle = dataclasses.replace(PLAIN, consensus=1.0)
    assert candidates.choose(candidates.ranked(found, best), best) == "q r s t"
    assert candidates.choose(candidates.ranked(found, middle), middle) == "a b c d"


def test_context_is_drawn_by_seed_without_repeats():
    texts = ["One two!", "one two", "three", "", "four five"]
    assert sorted(reading.draw_context(texts, 9, 0)) == ["four five", "one two", "three"]
    many = [f"sentence {i}" for i in range(50)]
    assert reading.draw_context(many, 5, 0) == reading.draw_context(many[::-1], 5, 0)
    assert reading.draw_context(many, 5, 0) != reading.draw_context(many, 5, 1)


def test_settings_come_from_the_workdir(tmp_path):
    assert reading_config.load_config(tmp_path, "rescore") == reading_config.Config(
        method="rescore"
    )
    saved = {"methods": {"rescore": {"llm_weight": 0.7, "members": ["other"]}}}
    (tmp_path / reading_config.FILE).write_text(json.dumps(saved))
    found = reading_config.load_config(tmp_path, "rescore")
    assert (found.llm_weight, found.members) == (0.7, ("other",))
    other = tmp_path / "ensemble.json"
    other.write_text('{"methods": {"rescore": {"llm_weight": 0.1}}}')
    assert reading_config.load_config(tmp_path, "rescore", other).llm_weight == 0.1
    assert (
        reading_config.load_config(tmp_path, "beam").llm_weight
        == reading_config.Config().llm_weight
    )
    (tmp_path / reading_config.FILE).write_text('{"methods": {"beam": {"wdith": 3}}}')
    with pytest.raises(ConfigError, match="wdith"):
        reading_config.load_config(tmp_path, "beam")
    (tmp_path / reading_config.FILE).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        reading_config.load_config(tmp_path, "beam")


def test_what_cannot_work_is_refused(loaded):
    with pytest.raises(ConfigError, match="needs no reader"):
        reading.Reader(loaded, reading_config.Config(method="greedy"))
    with pytest.raises(ConfigError, match="transcripts are needed"):
        reading.Reader(loaded, WITH_LLM)
    deaf = dataclasses.replace(loaded, llm=None)
    with pytest.raises(ConfigError, match="without the LLM"):
        reading.Reader(deaf, WITH_LLM, tiny_world.SENTENCES)
    with pytest.raises(ConfigError) as error:
        reading_config.Config(method="best", llm_weight=-1, num_best=0)
    assert all(w in str(error.value) for w in ("method='best'", "llm_weight=-1", "num_best=0"))
