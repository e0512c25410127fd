"""The study's bookkeeping: who is scored on what, what counts as an error, and what is chosen by."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import personalize as configs
from tiny_align_jax import beam, related
from tiny_align_jax.adapt import (
    crew,
    delta,
    fit,
    study,
    study_choose,
    study_reading,
    study_report,
    study_run,
    study_scores,
    word_prior,
)
from tiny_align_jax.types import ConfigError, Utterance

NUM_USERS, NUM_SAID, NUM_ROWS = 3, 20, 8


@pytest.fixture(scope="module")
def users():
    """Three users; user u says row u + 1 in every utterance, and rows 6 and 7 are unknown to the base."""
    said = [
        Utterance(f"u{u}_{i:02d}", "x.wav", f"text {u} {i}", f"u{u}", age=7 + 10 * u)
        for u in range(NUM_USERS)
        for i in range(NUM_SAID)
    ]
    targets = tuple(np.array([u + 1, 5 + (u > 0)]) for u in range(3) for _ in range(NUM_SAID))
    base = types.SimpleNamespace(vocabulary=[None] * NUM_ROWS)
    topics = np.ones((2, NUM_ROWS), np.float32)
    names = tuple(f"u{u}" for u in range(NUM_USERS))
    return crew.Crew(base, 6, names, tuple(said), None, targets, topics)  # type: ignore[arg-type]


def test_a_job_scores_six_and_learns_from_others(users):
    plan = crew.plan(users, folds=(0, 1, 2), seeds=(0, 1))
    assert len(plan) == 3 * 3 * 2 and plan.rows_JS.shape[1] == NUM_SAID
    for job in range(len(plan)):
        tested = {u.utterance_id for u in crew.tested(users, plan, job)}
        learnt = {u.utterance_id for u in crew.learnt_from(users, plan, job)}
        assert len(tested) == 6 and len(learnt) == 14 and not tested & learnt
        assert {u.speaker_id for u in crew.tested(users, plan, job)} == {f"u{plan.speaker_J[job]}"}
        assert plan.valid_JS[job].sum() == 3 and not (plan.valid_JS[job] * plan.train_JS[job]).any()
    seeds = plan.seed_J == 0
    np.testing.assert_array_equal(plan.rows_JS[seeds], plan.rows_JS[~seeds])


def test_a_control_learns_from_the_next_user_and_scores_the_same(users):
    own = crew.plan(users, folds=(0,), seeds=(0,))
    control = crew.plan(users, folds=(0,), seeds=(0,), control=1)
    np.testing.assert_array_equal(own.rows_JS[:, :6], control.rows_JS[:, :6])
    for job in range(len(control)):
        names = {u.speaker_id for u in crew.learnt_from(users, control, job)}
        assert names == {f"u{(control.speaker_J[job] + 1) % 3}"}


def test_fewer_utterances_and_no_validation(users):
    few = crew.plan(users, folds=(0,), seeds=(0,), num_adapt=4, validate=False)
    assert (few.train_JS.sum(1) == 4).all() and not few.valid_JS.any()
    whole = crew.plan(users, folds=(0,), seeds=(0,), validate=False)
    assert (whole.train_JS.sum(1) == 14).all()
    with pytest.raises(ConfigError, match="no fold 3"):
        crew.plan(users, folds=(3,), seeds=(0,))


def test_users_see_their_own_new_rows_only(users):
    plan = crew.plan(users, folds=(0,), seeds=(0,))
    bias = np.asarray(crew.jobs_of(users, plan).row_bias_JV)
    assert (bias[0, 6:] == crew.HIDDEN).all() and (bias[0, :6] == 0).all()
    assert (bias[1:, 6] == 0).all() and (bias[1:, 7] == crew.HIDDEN).all()
    prior = np.asarray(
        crew.jobs_of(users, plan, word_prior.Config(weight=1.0, cache=5.0)).row_bias_JV
    )
    assert prior[1, 2] > prior[1, 1]  # user 1 says row 2
    assert (np.asarray(crew.base_jobs(users, plan).row_bias_JV)[:, 6:] == crew.HIDDEN).all()


def test_seeds_share_a_prior_and_programs(users):
    plan, once = (crew.plan(users, folds=(0, 1), seeds=seeds) for seeds in ((0, 1), (0,)))
    how = word_prior.Config(weight=1.0, cache=5.0)
    jobs, alone = (crew.jobs_of(users, p, how) for p in (plan, once))
    np.testing.assert_array_equal(jobs.row_bias_JV, np.repeat(alone.row_bias_JV, 2, axis=0))
    parts = study._by_seeds(plan, jobs)
    shapes = [jax.tree.map(jnp.shape, part) for part in (*parts, alone)]
    assert len(parts) == 2 and shapes[0] == shapes[1] == shapes[2]
    for whole, on_host in ((jobs, False), (jax.device_get(jobs), True)):
        joined = study._joined(study._by_seeds(plan, whole))
        jax.tree.map(np.testing.assert_array_equal, joined, whole)
        assert isinstance(joined.key_J, np.ndarray) == on_host


def test_errors_are_words_after_the_normaliser():
    assert study_scores.word_errors("It's TWO dogs!", "it is 2 dogs") == 0
    assert study_scores.word_errors("a dog", "a big dog") == 1
    errors = study_scores.errors_of([["a dog", "cat"]], [["a dog", ""]])
    np.testing.assert_array_equal(errors, [[0, 1]])
    np.testing.assert_array_equal(study_scores.words_of([["a dog", "cat"]]), [[2, 1]])


def test_scores_are_paired_over_speakers():
    rng = np.random.default_rng(0)
    before = rng.integers(2, 5, (40, 6))
    after = np.maximum(before - 1, 0)
    speaker = np.tile(np.arange(20), 2)
    ages = [7.0] * 10 + [30.0] * 10
    found = study_scores.table(speaker, ages, np.full((40, 6), 8), {"a": after, "b": before})
    assert found.errors["b"][3] == before[speaker == 3].sum()
    row = study_scores.reduction(found, "a", "b")
    assert row["pooled"]["value"] == pytest.approx(1 - after.sum() / before.sum(), abs=1e-4)
    assert row["pooled"]["low"] > 0 and row["wer"]["high"] < 0
    assert set(study_scores.by_band(found, "a", "b")) == {"6-9", "adult"}
    assert study_scores.share_worse(found, "a", "b") == {"any": 0.0, "significant": 0.0}
    assert study_scores.share_worse(found, "b", "a")["significant"] == 1.0
    assert study_scores.wer(found, "b")["value"] == pytest.approx(
        before.sum() / (40 * 48), abs=1e-4
    )


def test_a_copy_that_validation_speaks_against_is_the_base():
    errors = np.arange(12.0).reshape(3, 2, 2)  # checkpoints, jobs, tests
    losses = np.array([[1.0, 0.5, 0.8], [1.0, 1.1, 1.2]])
    outcome = study.Outcome(errors, losses, {"frames:shift": jnp.ones((2, 4))}, None, 0.0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(outcome.stopped(), [errors[1, 0], errors[0, 1]])
    kept = outcome.guarded(outcome)
    np.testing.assert_array_equal(kept.errors_CJN[-1], [errors[2, 0], errors[0, 1]])
    np.testing.assert_array_equal(kept.delta["frames:shift"][:, 0], [1.0, 0.0])
    np.testing.assert_array_equal(outcome.guarded(outcome, 0.25).errors_CJN, errors)
    np.testing.assert_array_equal(outcome.guarded(outcome, 0.1).errors_CJN, kept.errors_CJN)
    second = outcome.rows(np.array([1]))
    np.testing.assert_array_equal(second.errors_CJN, errors[:, 1:])
    assert study.by_job(second) == {"errors": [[5.0, 13.0, 21.0]], "valid_loss": [[1.0, 1.1, 1.2]]}


def test_methods_share_programs_as_far_as_they_can():
    sections = {n: configs.get_config(n).to_dict() for n in configs.METHODS}
    points = study.points_of(sections, (1.0, 0.3))
    assert len({p.name for p in points}) == len(configs.METHODS) - 1  # 'words' trains nothing
    methods = [p.method for p in points]
    shared = {study.shared_method(m, methods) for m in methods}
    assert len(shared) == 6  # projector, encoder, and each set of low-rank products
    whole = next(m for m in shared if "projector/.*" in m.offsets)
    assert whole.frames == "affine" and not whole.needs_encoder
    assert study.shared_method(delta.Method(frames="shift"), [delta.Method(frames="shift")]) == (
        delta.Method(frames="shift")
    )


def test_n_best_texts_of_heard_probabilities_and_tuned_weights(users):
    plan = crew.plan(users, folds=(0,), seeds=(0,))
    strings = ("", "a", "b", "c", "d", "e", "f", "g")
    decode = lambda rows: " ".join(strings[int(r)] for r in rows)  # noqa: E731
    base = types.SimpleNamespace(vocabulary=types.SimpleNamespace(decode=decode))
    heard = fit.Heard(
        readings_JSA=None,  # type: ignore[arg-type]
        top_rows_JSAK=np.tile(np.array([1, 2]), (3, 6, 2, 1)),
        top_log_probs_JSAK=np.tile(np.log([0.5, 0.3]), (3, 6, 2, 1)),
        blank_JSA=np.full((3, 6, 2), np.log(0.2)),
        num_tokens_JS=np.full((3, 6), 2),
    )
    named = crew.Crew(
        base, 6, users.speakers, users.utterances, None, users.targets, users.topics_KV
    )  # type: ignore[arg-type]
    best = study_reading.n_best(named, plan, heard, 4)
    first = best[0][0]
    assert first.texts[0] == "a" and len(first.texts) == 4
    exact = beam.search(
        [
            beam.Emissions(
                *(
                    np.asarray(x[0, 0])
                    for x in (heard.top_rows_JSAK, heard.top_log_probs_JSAK, heard.blank_JSA)
                )
            )
        ]
    )  # type: ignore[index]
    assert first.ctc[0] == pytest.approx(exact[0][0].log_prob)
    texts = ("x", "y")
    listed = [
        [
            study_reading.Best(
                texts, np.array([-1.0, -2.0]), np.array([1, 1]), np.zeros(2), np.array([2, 0])
            )
        ]
    ]
    said = [[np.array([-9.0, -3.0])]]
    weights = study_reading.tune(listed, said)
    assert weights.llm > 0 and study_reading.errors_at(listed, said, weights).sum() == 0
    assert study_reading.oracle(listed).sum() == 0


def test_related_sentences_share_rare_words():
    found = related.Related(
        ["the cat sat", "four six two", "the dog ran", "seven four", "Four six two!"]
    )
    near = found.to(["six eight four", "the"], 2)
    assert near == ["seven four", "four six two"]  # the nearest last, repeats once
    assert found.to(["anything"], 0) == []


def test_a_study_is_reported_with_its_pictures(tmp_path):
    interval = {"value": 0.1, "low": 0.0, "high": 0.2}
    point = {"point": "norms, lr 0.001, replay 0.5", "wer_by_checkpoint": [0.4, 0.3], "steps": 8}
    point |= {"gain": -0.1, "wer_early_stop": 0.3, "base_kept": 0.1, "seconds": 2.0}
    reading = {"oracle": 0.2, "control at own weights": 0.35}
    reading["contexts"] = {"own": {"wer": 0.3, "llm": 0.5, "bonus": 1.0}}
    choose = {"users": {"speakers": 2}, "base": 0.4, "seconds": 1.0, "chosen": {}}
    choose |= {"points": [point, {"point": "x", "skipped": "out of time"}]}
    choose |= {"reading with the LLM": reading, "failed": [{"acoustics": "no"}]}
    band = {"adult": {"speakers": 2, "pooled": interval}}
    errors = {"base": [4, 3], "base + LLM": [3, 3], "all": [2, 2], "all, other's": [3, 3]}
    test = {"users": {"ages": [7, 30]}, "seconds": 1.0, "errors by speaker": errors}
    test |= {"words by speaker": [10, 10], "wer": {"base + LLM": interval, "all": interval}}
    test |= {"reductions": {"all | base": {"pooled": interval, "mean": interval}}}
    test |= {"bands, all | base": band, "wer from 4 utterances": {"all": 0.25}}
    (tmp_path / study_run.FILE).write_text(json.dumps({"choose": choose, "test": test}))
    text = study_report.write(tmp_path)
    assert (
        "| own | 0.3000 | 0.5 | 1.0 |" in text and "| all, base | 0.1000 [0.0000, 0.2000]" in text
    )
    assert {p.stem for p in tmp_path.glob("*.png")} == {"curves", "slopes", "bands", "sizes"}
    assert (tmp_path / study_report.REPORT).read_text().strip() == text.strip()


def test_a_divided_first_phase_is_joined(tmp_path):
    for name, gain in (("a", None), ("b", -0.01), ("c", -0.03)):
        (tmp_path / name).mkdir()
        chosen = {"prior": 1.0 if name == "a" else 0.0, "weights": {}}
        chosen["acoustic"] = gain and {"name": name, "gain": gain}
        (tmp_path / name / study_choose.FILE).write_text(json.dumps(chosen))
    found = study_choose.join([tmp_path / n for n in ("a", "b", "c", "missing")])
    assert found["prior"] == 1.0 and found["acoustic"]["name"] == "c"
    with pytest.raises(ConfigError, match="run it with --dev_base"):
        study_choose.join([tmp_path / "missing"])


def test_notes_survive_a_part_that_fails(tmp_path):
    notes = study_run.Notes(tmp_path, "choose")
    assert notes.part("good", lambda: 1) == 1
    assert notes.part("bad", lambda: 1 / 0) is None
    notes.append("points", {"a": 1})
    study_run.Notes(tmp_path, "test").write("wer", 0.5)
    saved = json.loads((tmp_path / study_run.FILE).read_text())
    assert "division" in saved["choose"]["failed"][0]["bad"]
    assert saved["choose"]["points"] == [{"a": 1}] and saved["test"]["wer"] == 0.5
