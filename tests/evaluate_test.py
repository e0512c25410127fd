"""Evaluation of a whole miniature run: scores, groups, files, and what is left out by name."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import (
    decode,
    evaluate,
    evaluation_report,
    reading,
    reading_config,
    scoring,
)
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.metrics import wer
from tiny_align_jax.types import ConfigError, DataError, Utterance

QUICK = scoring.Config(num_resamples=50)
SHORT = decode.Config(max_new_tokens=8, batch_buckets=(4,), tail_buckets=(32,))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def loaded(world):
    return Aligner.load(world.workdir, world.cache_dir, need_llm=True)


@pytest.fixture(scope="module")
def whole(world, loaded):
    return evaluate.evaluate(loaded, world.cache_dir, settings=SHORT, scoring_config=QUICK)


def test_systems_and_scores_agree(loaded, whole):
    assert set(whole.systems) == {"heard", "answer", "oracle"}
    references = [u.text for u in whole.utterances]
    scores = whole.metrics["normalizers"]["lower"]["scores"]
    for system, texts in whole.systems.items():
        expected = wer.compute(wer.Config("lower"), references, texts)["wer"]
        row = scores[system]["all"]
        assert row["wer"]["value"] == pytest.approx(expected, abs=1e-5)
        assert row["wer"]["low"] <= row["wer"]["value"] <= row["wer"]["high"]
        assert row["num_utterances"] == len(references) == 11
        assert row["num_speakers"] == 4


def test_oracle_is_the_true_text_through_the_same_prompt(loaded, whole):
    responder = loaded.responder(settings=SHORT)
    truths = [loaded.embed_text(u.text) for u in whole.utterances]
    assert [a.text for a in responder.answer(truths)] == list(whole.systems["oracle"])
    same = {u.text: set() for u in whole.utterances}
    for utterance, text in zip(whole.utterances, whole.systems["oracle"], strict=True):
        same[utterance.text].add(text)
    assert all(len(texts) == 1 for texts in same.values())


def test_batches_do_not_matter(world, loaded, whole):
    other = evaluate.Config(use_llm=False, batch_size=1, num_buckets=1)
    alone = evaluate.evaluate(loaded, world.cache_dir, other, scoring_config=QUICK)
    assert alone.systems["heard"] == whole.systems["heard"]
    assert set(alone.systems) == {"heard"}


def test_unusable_audio_is_left_out_by_name(whole):
    assert list(whole.metrics["skipped"]) == ["s4_2"]
    assert "silent" in whole.metrics["skipped"]["s4_2"]
    assert "s4_2" not in [u.utterance_id for u in whole.utterances]
    assert "s4_2: " in evaluation_report.summary(whole.metrics)


def test_groups(whole):
    row = whole.metrics["normalizers"]["whisper_english"]["scores"]["heard"]
    counts = {group: scores["num_utterances"] for group, scores in row.items()}
    assert counts == {
        "all": 11, "age 6-9": 3, "age 10-15": 3, "age adult": 5, "sex f": 6, "sex m": 5,
    }  # fmt: skip
    assert row["all"]["wer"]["resampled"] == "utterance"  # four speakers are too few


def test_files(whole, tmp_path):
    paths = evaluate.write(whole, tmp_path) | evaluation_report.write(whole, tmp_path)
    assert {p.name for p in paths.values()} == {
        "metrics.json", "predictions.jsonl", "report.md", "wer_by_group.png",
    }  # fmt: skip
    assert json.loads(paths["metrics"].read_text())["normalizers"] == whole.metrics["normalizers"]
    rows = [json.loads(line) for line in paths["predictions"].read_text().splitlines()]
    assert len(rows) == 11
    assert rows[0]["speaker"] == "s1"
    assert rows[0]["reference"] == whole.utterances[0].text
    assert rows[0]["answer"] == whole.systems["answer"][0]
    assert {"id", "age", "sex", "heard", "oracle", "answer_cut"} <= set(rows[0])
    assert paths["plot"].read_bytes().startswith(b"\x89PNG")
    report = paths["report"].read_text()
    for word in (
        "lower",
        "whisper_english",
        "11 utterances of 4 speakers",
        "oracle",
        "answer - heard",
    ):
        assert word in report
    assert not list(tmp_path.glob("*.part"))


def test_a_partial_run_says_so_and_overwrites_nothing(world, loaded, whole, tmp_path):
    config = evaluate.Config(limit=4, use_llm=False)
    part = evaluate.evaluate(loaded, world.cache_dir, config, scoring_config=QUICK)
    assert part.metrics["num_utterances"] in (3, 4)  # the silent one may be drawn
    assert part.metrics["partial"]
    assert evaluation_report.summary(part.metrics).startswith("PARTIAL")
    evaluate.write(whole, tmp_path)
    before = (tmp_path / "metrics.json").read_text()
    assert evaluate.write(part, tmp_path)["metrics"].name == "metrics.no_llm.partial.json"
    assert (tmp_path / "metrics.json").read_text() == before


def test_limit_above_the_split_is_the_whole_split(loaded):
    chosen, partial = evaluate.choose(loaded.config, evaluate.Config(limit=500))
    assert (len(chosen), partial) == (12, False)


def test_drawn_subsets_depend_on_the_seed_alone(loaded):
    draw = lambda seed: [  # noqa: E731
        u.utterance_id
        for u in evaluate.choose(loaded.config, evaluate.Config(limit=6, seed=seed))[0]
    ]
    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize("snap", ["soft", "none", "nearest"])
def test_other_snaps_reach_the_llm(world, loaded, whole, snap):
    config = evaluate.Config(snap=snap)
    other = evaluate.evaluate(loaded, world.cache_dir, config, settings=SHORT, scoring_config=QUICK)
    assert other.systems["heard"] == whole.systems["heard"]
    assert other.systems["oracle"] == whole.systems["oracle"]
    assert evaluate.file_tag(other.metrics) == f".{snap}"


def test_a_reading_with_help_stands_beside_the_greedy_one(world, loaded, whole):
    how = reading_config.Config(method="rescore", num_best=4, context=1, ngram_weight=0.0)
    reader = reading.Reader(loaded, how, tiny_world.SENTENCES)
    found = evaluate.evaluate(loaded, world.cache_dir, None, SHORT, QUICK, reader)
    assert list(found.systems) == ["heard", "fused", "answer", "oracle"]
    assert found.systems["heard"] == whole.systems["heard"]
    assert found.systems["fused"] != whole.systems["heard"]
    responder = loaded.responder(settings=SHORT)
    asked = responder.answer([loaded.embed_text(t) for t in found.systems["fused"]])
    assert [a.text for a in asked] == found.systems["answer"]
    about = found.metrics["reading"]
    assert about["method"] == "rescore" and about["seconds_per_utterance"] > 0
    differences = found.metrics["normalizers"]["lower"]["differences"]
    assert {"fused - heard", "answer - fused", "answer - heard"} == set(differences)
    assert evaluate.file_tag(found.metrics) == ".rescore"
    assert "read with help" in evaluation_report.summary(found.metrics)


def test_an_empty_split_is_named(loaded):
    with pytest.raises(DataError, match="no validation utterances"):
        evaluate.choose(loaded.config, evaluate.Config(split="validation"))


def test_bad_switches_are_all_named():
    with pytest.raises(ConfigError) as error:
        evaluate.Config(split="dev", snap="hard", limit=-1)
    assert all(word in str(error.value) for word in ("split='dev'", "snap='hard'", "limit=-1"))


def _utterances(*rows):
    return [
        Utterance(f"u{i}", "", text, speaker, age=age, sex=sex)
        for i, (text, speaker, age, sex) in enumerate(rows)
    ]


def test_a_grouping_of_one_value_is_left_out():
    same = _utterances(("a", "s1", 7, "f"), ("b", "s2", 8, None))
    assert list(scoring.groups(same)) == ["all", "sex f", "sex unknown"]
    plain = [dataclasses.replace(u, age=None, sex=None) for u in same]
    assert list(scoring.groups(plain)) == ["all"]


def test_note_says_what_was_resampled():
    rows = [("one two", f"s{i}", 7 if i else 30, None) for i in range(6)]
    scores = scoring.score(QUICK, _utterances(*rows), {"heard": ["one"] * 6})
    metrics = {"normalizers": scores, "intervals": {"level": 0.95}}
    note = evaluation_report.interval_note(metrics)
    assert note.startswith("95% bootstrap intervals over speakers (utterances where a group")


def test_paired_difference_is_b_taken_from_a():
    utterances = _utterances(*(("one two", f"s{i}", None, None) for i in range(6)))
    systems = {"good": ["one two"] * 6, "bad": ["one"] * 6}
    found = scoring.score(QUICK, utterances, systems, [("good", "bad")])["lower"]
    assert found["differences"]["good - bad"]["wer"]["value"] == pytest.approx(-0.5)
    assert found["scores"]["bad"]["all"]["wer"]["value"] == pytest.approx(0.5)


def test_table_is_aligned_and_shows_intervals():
    utterances = _utterances(("one two", "s1", 7, "f"), ("three", "s2", 30, "m"))
    metrics = {
        "normalizers": scoring.score(QUICK, utterances, {"heard": ["one two", "tree"]}),
    }
    lines = evaluation_report.table(metrics, "lower").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "0.333 [" in lines[2]
    assert len(lines) == 2 + 5
    assert np.array_equal(scoring.groups(utterances)["age 6-9"], [0])
