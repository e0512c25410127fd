"""Both phases of the study on a miniature: encoder in the step, several seeds, LLM and controls.

One fold and one method, so that both phases share their programs: compiling is what takes time here.
"""

import dataclasses
import json

import pytest

from configs import personalize as configs
from tests import tiny_world
from tiny_align_jax.adapt import (
    crew,
    fit,
    study,
    study_choose,
    study_final,
    study_report,
    study_run,
)
from tiny_align_jax.aligner import Aligner

NAMES = ("encoder_low_rank",)
SIZES = fit.Config(
    steps_per_checkpoint=1, num_checkpoints=2, batch_size=2, replay_size=2, jobs_at_once=8
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    world = tiny_world.make(tmp_path_factory.mktemp("base"))
    base = Aligner.load(world.workdir, world.cache_dir, need_llm=True)
    real = study_run.corpus.read_split(base.config)
    few = sorted({u.speaker_id for u in real.test})[:2]
    # Twenty of each, as in so762: what a speaker said, again and again under other names.
    said = {s: [u for u in real.test if u.speaker_id == s] for s in few}
    users = tuple(
        dataclasses.replace(said[s][i % len(said[s])], utterance_id=f"{s}-{i}")
        for s in few
        for i in range(20)
    )
    with pytest.MonkeyPatch.context() as patch:
        split = dataclasses.replace(real, test=users)
        patch.setattr(study_run.corpus, "read_split", lambda config: split)
        config = study_run.Config(replay_count=4, audio_count=4)
        yield study_run.prepare(base, str(world.cache_dir), "test", config, SIZES, True)


@pytest.fixture(scope="module")
def points():
    sections = {n: json.loads(configs.get_config(n).to_json_best_effort()) for n in NAMES}
    return study.points_of(sections, [1.0])


def test_a_method_is_chosen_with_its_checkpoint_and_tolerance(
    ground, points, tmp_path, monkeypatch
):
    monkeypatch.setattr(study_choose, "_reading", lambda phase, base: None)  # the test phase reads
    config = study_run.Config(folds=(0,), budget_s=1e9, num_best=2, finalists=3)
    chosen = study_choose.run(ground, points, config, tmp_path)
    notes = json.loads((tmp_path / study_run.FILE).read_text())["choose"]
    assert "failed" not in notes and len(notes["points"]) == len(points)
    for row in notes["points"]:
        assert len(row["by_job"]["errors"]) == 2 and len(row["by_job"]["valid_loss"][0]) == 3
    assert chosen["acoustic"] is None or chosen["acoustic"]["gain"] < 0
    # Random weights gain nothing, so that no method comes this far by itself.
    plans = (crew.plan(ground.lab.crew, folds=(0,), seeds=(0,), control=c) for c in (0, 1))
    phase = study_choose.Phase(
        ground, config, study_run.Notes(tmp_path, "final"), *plans, 60, {"acoustic": None}
    )
    study_choose._final(phase, dataclasses.replace(points[0], checkpoint=1), points)
    (row,) = phase.notes.entries["finalists"]
    assert len(row["checked"]) == 2 * len(study_choose.TOLERANCES)
    assert len(row["by_job"]["mean of copies"]["errors"]) == 2
    assert len(row["by_job"]["own, all utterances"]["errors"]) == 2 * 3


def test_test_users_are_scored_with_all_seeds_and_a_control(ground, points, tmp_path):
    acoustic = {"name": "encoder_low_rank", "learning_rate": 1e-2, "checkpoint": 1}
    acoustic |= {"replay_weight": 0.5, "decay": 0.0, "tolerance": 9.0, "copies": 2, "gain": -0.1}
    acoustic |= {study_choose.STEPS: 1}
    contexts = [
        c + w for c in (study_choose.EVERYBODYS, study_choose.RELATED) for w in ("", ", words")
    ]
    weights = {c: {"llm": 1.0, "bonus": 0.0, "ngram": 0.0} for c in contexts}
    chosen = {"prior": 1.0, "weights": weights, "acoustic": acoustic}
    config = study_run.Config(folds=(0,), seeds=(0, 1), num_best=2, sizes=(2,))
    choice = study_final.Choice.of(chosen, points)
    assert study_choose.sizes(chosen, SIZES) == SIZES
    assert (
        study_choose.sizes({"acoustic": {study_choose.STEPS: 7}}, SIZES).steps_per_checkpoint == 7
    )
    notes = study_final.run(ground, choice, config, tmp_path)
    assert "failed" not in notes and notes["users"]["jobs"] == 4
    systems = {"words", "sentences", "acoustic", "copy", "acoustic and words", "all"}
    controls = {f"{name}, other's" for name in systems}
    assert set(notes["wer"]) == {"base", "base + LLM", "checked", *systems, *controls}
    errors = notes["errors by speaker"]
    assert errors["checked"] == errors["acoustic"]  # at a tolerance that nothing exceeds
    assert "acoustic | acoustic, other's" in notes["reductions"]
    assert {"bands, acoustic | base", "worse, acoustic | base", "wer from 2 utterances"} <= set(
        notes
    )
    curve = notes["acoustic by checkpoint, own"]
    assert curve["jobs"] == 4 and len(curve["wer_by_checkpoint"]) == 3
    assert "| acoustic, acoustic, other's |" in study_report.write(tmp_path)
