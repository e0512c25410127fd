"""Sweeps: the product, what cannot be, and a whole miniature sweep with a crash in it."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import types

import filelock
import jax
import numpy as np
import pytest

from configs import common
from tests import tiny_world
from tiny_align_jax import registry, report, sweep, sweep_run
from tiny_align_jax.data import augment, prompts
from tiny_align_jax.train import lanes, loop, run, step
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import safetensors


def _plain(config):
    return json.loads(config.to_json_best_effort())


def _module(**generators):
    module = types.ModuleType("swept")
    for name, values in generators.items():
        setattr(module, f"sweep_{name}", lambda values=values: iter(values))
    return module


BASE = _plain(common.base())


# ---- the product ------------------------------------------------------------------------------


def test_the_last_axis_varies_fastest_and_seeds_share_a_row():
    module = _module(
        projector=[
            {"projector.name": "linear"},
            {"projector.name": "mlp", "projector.mlp.stack": 5},
        ],
        seed=[{"seed": 0}, {"seed": 1}],
    )
    lean = registry.without_unread(BASE)  # so that a plug-in's defaults have to come along
    points = sweep.expand(lean, sweep.axes(module, ["projector", "seed"]))
    assert [p.name for p in points] == [
        "projector=linear,seed=0",
        "projector=linear,seed=1",
        "projector=mlp_stack=5,seed=0",
        "projector=mlp_stack=5,seed=1",
    ]
    assert [p.row for p in points] == ["linear", "linear", "mlp stack=5", "mlp stack=5"]
    last = points[-1].config
    assert (last["seed"], last["projector"]["name"], last["projector"]["mlp"]["stack"]) == (
        1,
        "mlp",
        5,
    )
    assert last["projector"]["mlp"]["hidden_dim"] == 2048  # the plug-in's defaults came along
    assert set(last["projector"]) == {"name", "mlp"}, "what is not read is left out"
    assert lean == registry.without_unread(_plain(common.base())), (
        "what is expanded stays as it was"
    )


def test_every_unknown_key_is_named_at_once():
    module = _module(bad=[{"train.stepz": 1}, {"projector.mlp.stak": 2, "nothing": 1}])
    with pytest.raises(ConfigError, match=r"(?s)train\.stepz.*projector\.mlp\.stak, nothing"):
        sweep.expand(BASE, sweep.axes(module, ["bad"]))
    with pytest.raises(ConfigError, match="unknown projectors plug-in 'mlpp'"):
        sweep.apply(BASE, {"projector.name": "mlpp"})


def test_a_sub_section_that_is_no_plugin_is_refused():
    misspelt = BASE | {"projector": BASE["projector"] | {"bridgefromer": {"dim": 8}}}
    module = _module(seed=[{"seed": 0}])
    with pytest.raises(ConfigError, match=r"key\(s\) bridgefromer that are no plug-in"):
        sweep.expand(misspelt, sweep.axes(module, ["seed"]))


def test_axes_that_depend_on_each_other_are_refused():
    module = _module(a=[{"seed": 0}], b=[{"seed": 1}], c=[{"seed": 0}])
    with pytest.raises(ConfigError, match="sweeps a and b both set seed"):
        sweep.expand(BASE, sweep.axes(module, ["a", "b"]))
    assert len(sweep.expand(BASE, sweep.axes(module, ["a", "c"]))) == 1


def test_bad_axes_are_named():
    module = _module(twice=[{"seed": 1}, {"seed": 1}], empty=[])
    with pytest.raises(ConfigError, match=r"no sweep named nope.*it has: empty, twice"):
        sweep.axes(module, ["nope"])
    with pytest.raises(ConfigError, match=r"yields 1 twice.*sweep_empty yields nothing"):
        sweep.axes(module, ["twice", "empty"])


def test_folder_names_are_plain_and_distinct():
    words = ["Repeat / after me: {audio} " * 4 + end for end in ("a", "b")]
    module = _module(wording=[{"prompt.instruction": text} for text in words])
    names = [p.name for p in sweep.expand(BASE, sweep.axes(module, ["wording"]))]
    assert len(set(names)) == 2 and all(len(n) < 64 and "/" not in n for n in names)


def test_training_key_ignores_what_only_scoring_reads():
    key = sweep.training_key
    other_prompt = sweep.apply(
        BASE, {"prompt.instruction": "Say {audio}", "evaluation.snap": "soft"}
    )
    assert key(BASE) == key(other_prompt) != key(sweep.apply(BASE, {"seed": 5}))
    through = sweep.apply(BASE, {"objective.name": "next_token"})
    assert key(through) != key(sweep.apply(through, {"prompt.instruction": "Say {audio}"}))


# ---- a whole sweep in miniature ---------------------------------------------------------------

TINY_BRIDGE = {"num_layers": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32, "stack": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def config(world):
    config = common.base()
    config.dataset = common.plugin("datasets", "jsonl", manifest=str(world.audio / "corpus.jsonl"))
    config.split.update(train="test", test="", validation_speakers=1)
    config.encoder.update(asset=str(world.encoder), window_s=tiny_world.WINDOW_S)
    config.llm.asset = str(world.llm)
    config.vocabulary.kind = "seen"
    config.projector = common.plugin("projectors", "bridgeformer", **TINY_BRIDGE)
    config.train.update(num_steps=3, batch_size=4, num_buckets=1, log_every=1)
    config.prompt.update(instruction="Say: {audio}", examples=())
    return _plain(config)


def _run(points, workdir, world, **settings):
    runner = sweep_run.Runner(workdir, str(world.cache_dir), sweep_run.Settings(**settings))
    return runner.run(points)


def test_crashes_and_impossible_cells_do_not_stop_the_rest(config, world, tmp_path, monkeypatch):
    module = _module(
        objective=[{"objective.name": n} for n in ("embedlink_ctc", "embedlink", "next_token")],
        snap=[{"evaluation.snap": ""}, {"evaluation.snap": "soft"}],
        seed=[{"seed": 0}, {"seed": 1}],
    )
    points = sweep.expand(config, sweep.axes(module, ["objective", "snap", "seed"]))
    calls = []

    def train(config, folder, *args, **kwargs):
        """Leaves what a run leaves; unlucky once at one point, always at another."""
        calls.append(folder.name)
        if "ctc" in folder.name and calls.count(folder.name) == 1 and config["seed"] == 1:
            raise RuntimeError("out of luck")
        if "next_token" in folder.name and config["seed"] == 1:
            raise RuntimeError("always broken")
        for name in sweep_run._TRAINED_FILES:
            (folder / name).write_text('{"finished": true}')
        (folder / "config.json").write_text(json.dumps(config))
        return {"finished": True}

    monkeypatch.setattr(run, "train", train)
    found = _run(points, tmp_path, world, score="none")
    state = [status["status"] for status in found.values()]
    assert state == ["finished"] * 4 + ["impossible"] * 4 + ["finished", "failed"] * 2
    broken = found["objective=next_token,snap=empty,seed=1"]
    assert broken["attempts"] == 2 and broken["error"] == "RuntimeError: always broken"
    assert "always broken" in (tmp_path / broken["name"] / "error.txt").read_text()
    assert "fixed number" in found["objective=embedlink,snap=empty,seed=0"]["error"]
    # Points that differ in scoring alone share the run.
    adopted = found["objective=embedlink_ctc,snap=soft,seed=1"]
    assert adopted["trained_in"] == "objective=embedlink_ctc,snap=empty,seed=1"
    assert calls.count(adopted["name"]) == 0
    saved = json.loads((tmp_path / adopted["name"] / "config.json").read_text())
    assert (saved["seed"], saved["evaluation"]["snap"]) == (1, "soft")

    calls.clear()
    again = _run(points, tmp_path, world, score="none")
    assert [status["status"] for status in again.values()] == state
    assert {name.split(",")[0] for name in calls} == {
        "objective=next_token"
    }  # the failed ones only
    changed = [
        dataclasses.replace(p, config=sweep.apply(p.config, {"train.num_steps": 4}))
        for p in points[:1]
    ]
    with pytest.raises(ConfigError, match="another config: objective=embedlink_ctc"):
        _run(changed, tmp_path, world)


def test_seeds_are_trained_and_scored_and_compile_once(config, world, tmp_path, monkeypatch):
    traces, real_step = [], step.train_step
    monkeypatch.setattr(step, "train_step", lambda *a: (traces.append(1), real_step(*a))[1])
    # A learning rate of its own, so that no earlier test has compiled this step.
    config["optimizer"]["learning_rate"] = 1.25e-3
    config["evaluation"]["snap"] = "nearest"
    points = sweep.expand(config, {"seed": [{"seed": 0}, {"seed": 1}]})
    _run(points[:1], tmp_path, world, score="none")
    after_one = len(traces)
    found = _run(points, tmp_path, world, score="heard")
    assert 0 < len(traces) == after_one
    weights = [(tmp_path / p.name / "projector.safetensors").read_bytes() for p in points]
    assert weights[0] != weights[1]
    for name, status in found.items():
        assert status["status"] == "finished" and status["versions"]["jax"] and "source" in status
        files = status["scored"]["validation/heard"]
        assert files["predictions"] == "predictions.validation.nearest.no_llm.jsonl"
        assert (tmp_path / name / files["predictions"]).read_text().count("\n") >= 2
    rows, scoring = report.load(tmp_path)
    assert scoring == "validation/heard" and [len(r.entries) for r in rows] == [2]
    assert rows[0].scores["wer"].mean > 0 and rows[0].params > 0


def test_lanes_train_as_runs_alone_would(config, world, tmp_path, monkeypatch):
    """Two seeds and two learning rates as one program against one of them alone."""
    config["train"].update(num_steps=3, steps_per_dispatch=2, validate_every=2)
    values = {
        "seed": [{"seed": 0}, {"seed": 1}],
        "rate": [{"optimizer.learning_rate": 1e-3}, {"optimizer.learning_rate": 2e-3}],
    }
    points = sweep.expand(config, values)
    together = _run(points, tmp_path / "lanes", world, score="none", lanes=3)
    assert [s["status"] for s in together.values()] == ["finished"] * 4
    assert together[points[0].name]["lanes"] == [p.name for p in points[:3]]
    alone = _run(points[2:3], tmp_path / "alone", world, score="none")
    assert "lanes" not in alone[points[2].name]

    def result(folder, k):
        path = tmp_path / folder / points[k].name
        summary = json.loads((path / "train_result.json").read_text())
        lines = [json.loads(t) for t in (path / "train.jsonl").read_text().splitlines()]
        log = [line for line in lines if "train_s" not in line]
        return safetensors.load_tree(path / "projector.safetensors"), summary, log

    found, summary, log = result("lanes", 2)
    expected, summary_alone, log_alone = result("alone", 2)
    assert summary["lanes"] == 3 and summary["step"] == 3 == summary_alone["step"]
    for tree in (found, expected):
        # Its true gradient is zero (a bias on attention keys); Adam blows up rounding errors.
        del tree["projector"]["layers"]["attention"]["key"]["bias"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    assert [line["step"] for line in log] == [line["step"] for line in log_alone]
    for line, other in zip(log, log_alone, strict=True):
        assert line == pytest.approx(other, rel=1e-3)
    # Another seed and another rate are other runs.
    for k in (0, 3):
        assert result("lanes", k)[2][0]["loss"] != pytest.approx(log[0]["loss"], rel=1e-6) or k == 3
        of_another = result("lanes", k)[0]
        del of_another["projector"]["layers"]["attention"]["key"]["bias"]
        leaves = zip(jax.tree.leaves(found), jax.tree.leaves(of_another), strict=True)
        assert max(np.abs(a - b).max() for a, b in leaves) > 1e-4


def test_lanes_of_several_seeds_whose_epochs_end_in_short_groups(config, world, tmp_path):
    """Each seed has the short group elsewhere, so lanes side by side have groups of different lengths."""
    # Three steps an epoch, in groups of two and one.
    config["train"].update(num_steps=9, batch_size=3, steps_per_dispatch=2)
    points = sweep.expand(config, {"seed": [{"seed": seed} for seed in range(2)]})
    found = _run(points, tmp_path / "lanes", world, score="none", lanes=2, invocation="one")
    assert [s["status"] for s in found.values()] == ["finished"] * 2
    _run(points, tmp_path / "alone", world, score="none")
    for point in points:
        logs = [
            [json.loads(t) for t in (tmp_path / f / point.name / "train.jsonl").open()]
            for f in ("lanes", "alone")
        ]
        losses, expected = (
            [(line["step"], line["loss"]) for line in log if "loss" in line] for log in logs
        )
        assert len(losses) == 9
        np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_lanes_need_equal_configs_and_one_bucket(config):
    key = sweep.lane_key
    other = sweep.apply(config, {"seed": 3, "optimizer.learning_rate": 0.1})
    assert key(config) == key(other) != key(sweep.apply(config, {"optimizer.b1": 0.5}))
    config["train"]["num_buckets"] = 2
    assert key(config) != key(sweep.apply(config, {"seed": 3}))


def test_runs_that_may_stop_early_are_no_lanes(config, world, tmp_path, monkeypatch):
    config["train"].update(patience=1, validate_every=1)
    points = sweep.expand(config, {"seed": [{"seed": 0}, {"seed": 1}]})
    alone = []
    monkeypatch.setattr(run, "train", lambda *a, **k: (alone.append(a), {"finished": True})[1])
    found = _run(points, tmp_path, world, score="none", lanes=2)
    assert len(alone) == 2 and not any("lanes" in status for status in found.values())
    patient = types.SimpleNamespace(config=loop.Config(patience=1, validate_every=1))
    with pytest.raises(ConfigError, match=r"lanes end together, but train\.patience=1"):
        lanes.fit([lanes.Lane(patient, None, 1.0, tmp_path)] * 2)


def test_a_lane_that_diverges_leaves_the_others(config, world, tmp_path):
    values = [{"optimizer.learning_rate": 1e-3}, {"optimizer.learning_rate": 1e35}]
    config["optimizer"].update(warmup_fraction=0.0, clip_norm=0.0)
    config["objective"]["name"] = "embedlink"
    config["projector"]["bridgeformer"].update(pooling="adaptive", num_tokens=4)
    points = sweep.expand(config, {"rate": values})
    found = _run(points, tmp_path, world, score="none", lanes=2, invocation="one")
    assert [s["status"] for s in found.values()] == ["finished", "failed"]
    assert "NonFiniteLossError" in found[points[1].name]["error"]


def test_points_of_one_training_are_scored_by_several_processes(
    config, world, tmp_path, monkeypatch
):
    """The lock on a training is let go as soon as it is done, before its point is scored."""
    points = sweep.expand(config, {"snap": [{"evaluation.snap": s} for s in ("soft", "none")]})
    held = []

    def score(runner, point, folder, status):
        lock = filelock.FileLock(runner._lane_lock(point).lock_file)
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
            held.append(point.name)
        return {}

    monkeypatch.setattr(sweep_run.Runner, "_score", score)
    monkeypatch.setattr(run, "train", lambda *a, **k: {"finished": True})
    _run(points, tmp_path, world, score="none")
    assert held == [p.name for p in points]


def test_two_processes_share_the_points(config, world, tmp_path, monkeypatch):
    """One that finds a point taken goes on, and comes back to it last."""
    points = sweep.expand(config, {"rate": [{"optimizer.b1": b} for b in (0.5, 0.6, 0.7)]})
    monkeypatch.setattr(run, "train", lambda *a, **k: {"finished": True})
    runner = sweep_run.Runner(
        tmp_path, "", sweep_run.Settings("none", invocation="both", attempts=1)
    )
    seen = []
    other = filelock.FileLock(tmp_path / "locks" / f"{sweep.lane_key(points[0].config)}.lock")
    (tmp_path / "locks").mkdir(parents=True)
    other.acquire()

    def on_done(point, status):
        seen.append(point.name)
        other.release()  # by then the other process has finished, or died

    runner.run(points, on_done)
    assert seen == [points[k].name for k in (1, 2, 0)]
    seen.clear()
    runner.run(points, on_done)
    assert seen == []  # told already


@pytest.mark.slow
def test_training_through_the_llm_is_scored_by_its_answer(config, world, tmp_path):
    config["train"]["num_steps"] = 1
    points = sweep.expand(config, {"objective": [{"objective.name": "next_token"}]})
    status = _run(points, tmp_path, world)["objective=next_token"]
    assert status["status"] == "finished", status["error"]
    files = status["scored"]["validation/heard"]
    assert files["predictions"] == "predictions.validation.none.jsonl"
    result = json.loads((tmp_path / points[0].name / "train_result.json").read_text())
    assert set(result["validation"]) == {"wer", "rouge1"}
    assert report.load(tmp_path)[0][0].entries[0].system == "answer"


def test_a_dead_process_counts_as_a_crash(config, world, tmp_path, monkeypatch):
    points = sweep.expand(config, {"seed": [{"seed": 0}]})
    monkeypatch.setattr(run, "train", lambda *a, **k: pytest.fail("it would die again"))
    runner = sweep_run.Runner(tmp_path, "", sweep_run.Settings(invocation="x"))
    runner._write(points[0], {"status": "running", "attempts": 2})
    status = runner.run(points)["seed=0"]
    assert "died 2 time(s)" in status["error"]
    assert sweep_run.lacked_memory(status)
    assert not sweep_run.lacked_memory(status | {"error": "ValueError: shapes"})
    assert not sweep_run.lacked_memory({"status": sweep_run.NOT_STARTED})


def test_settings_are_checked_together():
    with pytest.raises(ConfigError, match=r"score='all'.*split='dev'.*attempts=0.*lanes=0"):
        sweep_run.Settings(score="all", split="dev", attempts=0, lanes=0)


def test_command_line_lists_points_without_data(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--config=configs/so762.py:tiny",
               "--sweep=objective,seed", f"--workdir={tmp_path}", "--list"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 6 and all("experiments.sweep" in line for line in lines)
    assert [line.split()[-1] for line in lines] == [f"--point={k}" for k in range(6)]
    assert "--list" not in done.stdout and len(set(lines)) == 6


# ---- the ablations ------------------------------------------------------------------------------

ABLATIONS = sorted(
    path.stem for path in pathlib.Path("configs/ablations").glob("*.py") if path.stem[0] != "_"
)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_expands_to_points_that_can_run(name):
    module = importlib.import_module(f"configs.ablations.{name}")
    base = _plain(module.get_config("screen"))
    assert base["train"]["num_steps"] < _plain(module.get_config())["train"]["num_steps"]
    axes = [n.removeprefix("sweep_") for n in vars(module) if n.startswith("sweep_")]
    assert "seed" in axes
    for axis in axes:
        points = sweep.expand(base, sweep.axes(module, [axis]))
        assert len(points) > 1
        impossible = [p.row for p in points if sweep.why_impossible(p)]
        cell = "embedlink bridgeformer at frame rate"
        known = {"projector": [cell], "cell": [f"projector: {cell}"]}
        assert impossible == known.get(axis, [])
        for point in points:  # values of the right kind, too
            registry.make_config(augment, point.config["augment"])
            registry.make_config(prompts, point.config["prompt"])


def test_processes_are_dealt_out_to_the_visible_gpus():
    # In a process of its own: the experiment's flags would stay defined in this one.
    code = (
        "import json\n"
        "from experiments import sweep as s\n"
        "print(json.dumps([s._environments(3, {'CUDA_VISIBLE_DEVICES': '2,5'}), s._environments(1, {}),\n"
        "    s._environments(4, {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.8'})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dealt, alone, given = json.loads(done.stdout)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in dealt] == ["2", "5", "2"]
    fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert [e[fraction] for e in (dealt[0], alone[0], given[3])] == ["0.4500", "0.9000", "0.2000"]
    assert alone[0]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
