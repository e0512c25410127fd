"""Forced alignment: the best path by brute force, and words found where they were said."""

import dataclasses
import itertools

import numpy as np
import pytest
import soundfile

from tests import tiny_world
from tiny_align_jax import forced_alignment, registry
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.types import ConfigError, DataError, Utterance


def _collapse(path, blank):
    return [k for k, _ in itertools.groupby(path) if k != blank]


@pytest.mark.parametrize("targets", [[0], [0, 1], [1, 1], [0, 1, 0]])
def test_the_path_is_the_best_of_all(targets):
    rng = np.random.default_rng(len(targets))
    log_probs_AS = np.log(rng.dirichlet(np.ones(3), size=5)).astype(np.float32)
    states_A, path_A = forced_alignment.viterbi(log_probs_AS, np.array(targets), blank=2)
    symbols = [targets[s // 2] if s % 2 else 2 for s in states_A]
    assert _collapse(symbols, 2) == targets
    possible = [p for p in itertools.product(range(3), repeat=5) if _collapse(p, 2) == targets]
    best = max(sum(log_probs_AS[a, s] for a, s in enumerate(p)) for p in possible)
    assert path_A.sum() == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(path_A, log_probs_AS[np.arange(5), symbols])


def test_too_few_audio_tokens_are_named():
    with pytest.raises(DataError, match="2 audio tokens cannot hold 3 target tokens"):
        forced_alignment.viterbi(np.zeros((2, 3), np.float32), np.array([1, 1]), blank=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def align(world):
    aligner = Aligner.load(world.workdir, world.cache_dir, need_llm=False)
    return forced_alignment.ForcedAligner(aligner, forced_alignment.Config(min_confidence=0.0))


def _script(path, texts):
    return [Utterance(f"u{i}", str(path), text, "p") for i, text in enumerate(texts)]


def test_a_long_recording_is_read_in_windows_without_losing_a_token(world, align, tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * rng.normal(size=round(5.3 * 16000)), 16000)  # the window is 2 s
    log_probs_AS, token_s = align.read(path, np.array([1, 2]))
    assert len(log_probs_AS) * token_s == pytest.approx(5.3, abs=2 * token_s)
    assert np.isfinite(log_probs_AS).all() and log_probs_AS.shape[1] == 3


def test_utterances_come_in_order_and_what_cannot_be_spelled_is_dropped_by_name(
    world, align, tmp_path
):
    path = tmp_path / "talk.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(2).normal(size=3 * 16000), 16000)
    found = align(path, _script(path, ["the dog", "\u4f60\u597d", "green apples"]))
    assert list(found.dropped) == ["u1"] and "vocabulary" in found.dropped["u1"]
    first, last = found.utterances
    assert 0 <= first.start_s < first.end_s <= last.start_s < last.end_s <= 3.0 + 0.1
    assert all(0 < c <= 1 for c in found.confidence)
    (row,) = forced_alignment.manifest_rows(found, {"u2"})
    assert row["text"] == "green apples" and row["start_s"] < row["end_s"]


def test_unsure_utterances_are_dropped_with_their_confidence(world, align, tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(3).normal(size=16000), 16000)
    strict = forced_alignment.Config(min_confidence=0.99)
    picky = forced_alignment.ForcedAligner(align._aligner, strict)
    found = picky(path, _script(path, ["the dog"]))
    assert not found.utterances and "below 0.99" in found.dropped["u0"]


def test_a_projector_without_alignment_is_refused(align):
    ear = align._aligner.ear
    other = dataclasses.replace(ear, objective=registry.resolve("objectives", "embedlink"))
    with pytest.raises(ConfigError, match="embedlink_ctc"):
        forced_alignment.ForcedAligner(dataclasses.replace(align._aligner, ear=other))


def test_settings_that_cannot_work_are_refused_all_at_once():
    wrong = (
        r"^forced alignment: padding_s=-1; .* or more; min_confidence=1\.5; expected 0 <= x <= 1$"
    )
    with pytest.raises(ConfigError, match=wrong):
        forced_alignment.Config(min_confidence=1.5, padding_s=-1)
