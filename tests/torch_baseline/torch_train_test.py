"""The baseline's training run: same data as ours, a workdir that ours reads, and the objective through the LLM."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.train import world as train_world  # noqa: E402
from third_party.torch_baseline import bridgeformer, compare, train  # noqa: E402
from third_party.torch_baseline import data as data_lib  # noqa: E402
from third_party.torch_baseline.step import Trainer  # noqa: E402
from tiny_align_jax import ctc, evaluate, scoring  # noqa: E402
from tiny_align_jax.aligner import Aligner  # noqa: E402
from tiny_align_jax.train import setup  # noqa: E402
from tiny_align_jax.train import step as step_lib  # noqa: E402
from tiny_align_jax.types import ConfigError  # noqa: E402
from tiny_align_jax.weights import safetensors  # noqa: E402

pytestmark = pytest.mark.parity
STILL = {
    "augment__time_masks": 0,
    "augment__channel_mask_fraction": 0.0,
    "projector__bridgeformer__dropout": 0.0,
    "train__batch_size": 4,
}


def with_objective(config, name, **values):
    pooling = {"pooling": "none" if name == "embedlink_ctc" else "adaptive", "stack": 1}
    section = config["projector"] | {"bridgeformer": config["projector"]["bridgeformer"] | pooling}
    return config | {"objective": {"name": name, name: values}, "projector": section}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_world.make(tmp_path_factory.mktemp("world"), **STILL)


@pytest.fixture(autouse=True)
def rolled_up(monkeypatch):
    monkeypatch.setattr(ctc, "UNROLL", 1)


def test_a_run_reads_our_data_and_ours_reads_its_workdir(world, tmp_path):
    config, cache_dir = world
    config = with_objective(config, "embedlink_ctc")
    config = config | {"train": config["train"] | {"validate_every": 3}}
    result = train.train(config, tmp_path, cache_dir, progress=False)
    prepared = setup.prepare(config, cache_dir, progress=False)
    data = data_lib.load(config, cache_dir, progress=False)
    assert data.train.ids == prepared.run.examples.ids
    np.testing.assert_array_equal(data.table_VD, prepared.run.frozen.table_VD)
    card = json.loads((tmp_path / "projector.json").read_text())
    ours = json.loads(json.dumps(prepared.card))
    assert all(card[part] == ours[part] for part in ("projector", "llm", "encoder", "vocabulary"))
    assert result["step"] == 6 and result["step_ms"] > 0 and result["first_step_s"] > 0
    row = compare.training_row(tmp_path)
    assert [c["step"] for c in row["checks"]] == [3, 6]
    assert len(row["losses"]) == 6 and np.isfinite(row["losses"]).all()
    assert row["checks"][-1]["wer"] == pytest.approx(result["validation"]["wer"], rel=1e-4)
    aligner = Aligner.load(tmp_path, cache_dir, need_llm=False)
    scores = evaluate.evaluate(
        aligner,
        cache_dir,
        evaluate.Config(split="validation", use_llm=False),
        scoring_config=scoring.Config(num_resamples=5),
    )
    found = scores.metrics["normalizers"]["lower"]["scores"]["heard"]["all"]["wer"]["value"]
    assert found == pytest.approx(result["validation"]["wer"], abs=1e-4)


def test_next_token_equals_ours_through_the_llm(world):
    config, cache_dir = world
    config = with_objective(config, "next_token", llm_dtype="float32", remat=False)
    config = config | {"vocabulary": config["vocabulary"] | {"kind": "seen"}}
    prepared = setup.prepare(config, cache_dir, progress=False)
    values, data = data_lib.sections(config), data_lib.load(config, cache_dir, progress=False)
    model = train.make_model(config, values, data, "cpu")
    arrays = {
        n: torch.tensor(np.array(a)) for n, a in safetensors.named_leaves(prepared.state.trainable)
    }
    views = bridgeformer.all_views(model.projector, model.objective)
    bridgeformer.load_arrays(views, arrays)
    trainer = Trainer(model, values["optimizer"], 6)
    theirs = data_lib.Corpus(data.train, values["train"], config["seed"], "cpu").batches()
    steps, state = step_lib.make_stream_steps(prepared.run.spec), prepared.state
    groups = data_lib.batching.schedule(
        prepared.run.examples,
        4,
        data_lib.batching.bucket_lengths(prepared.run.examples.num_frames_N, 1),
        1,
        config["seed"],
    )
    for _ in range(3):
        group = next(groups)
        batch = data_lib.batching.gather(
            prepared.run.examples, group.index_KB[0], group.weight_KB[0], group.max_frames
        )
        stacked = jax.tree.map(lambda x: np.asarray(x)[None], batch)
        state, metrics = steps(state, prepared.run.frozen, stacked)
        found = float(trainer(next(theirs)))
        assert found == pytest.approx(float(metrics["loss"][0]), rel=1e-4)
    ours = dict(safetensors.named_leaves(state.trainable))
    for name, array in bridgeformer.arrays(views).items():
        if name.endswith("key/bias"):
            continue  # shifts all scores of a query alike: Adam makes steps of a gradient of rounding errors
        np.testing.assert_allclose(array, ours[name], atol=1e-5, err_msg=name)


def test_the_llm_answers_in_validation_and_recomputes_activations(world, tmp_path):
    config, cache_dir = world
    config = with_objective(config, "next_token", llm_dtype="float32", remat=True)
    config = config | {"vocabulary": config["vocabulary"] | {"kind": "seen"}}
    config = config | {"train": config["train"] | {"num_steps": 2}}
    result = train.train(config, tmp_path, cache_dir, progress=False)
    assert result["validation"]["wer"] > 0
    assert not [
        n for n in safetensors.load_tree(tmp_path / "projector.safetensors") if n != "projector"
    ]


def test_what_the_baseline_lacks_is_refused(world, tmp_path):
    config, cache_dir = world
    changes = {"average_decay": 0.9, "init_from": "x", "patience": 2, "validate_every": 1}
    config = config | {"train": config["train"] | changes}
    with pytest.raises(
        ConfigError, match=r"train\.init_from, train\.average_decay, train\.patience$"
    ):
        train.train(config, tmp_path, cache_dir, progress=False)


def test_comparison_tells_quality_that_all_reach_and_failures(tmp_path):
    def row(name, wers, step_ms):
        checks = [
            {"step": 10 * i, "seconds": i * step_ms / 100, "wer": w} for i, w in enumerate(wers, 1)
        ]
        return {"name": name, "checks": checks, "losses": [[1, 2.0], [2, 1.0]], "step_ms": step_ms}

    rows = [row("jax", [0.9, 0.5, 0.3], 1.0), row("torch-eager", [0.8, 0.6, 0.4], 10.0)]
    rows.append({"name": "torch-default", "torch-default error": "out of memory"})
    found = {"rows": rows}
    compare._write(tmp_path, found)
    assert found["target_wer"] == 0.4
    assert [r["quality_s"] for r in rows] == [0.03, 0.3, None]
    text = (tmp_path / "compare.md").read_text()
    assert "s to 0.400 10.00" in text and "torch-default: out of memory" in text
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no section 'nothing'"):
        compare.changed({"train": {}}, {"nothing.x": 1})
    assert compare.changed({"train": {"a": 1}}, {"train.a": 2})["train"]["a"] == 2
