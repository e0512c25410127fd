"""The loop: it learns, resumes bit for bit, streams as it resides, and fails without losing work."""

import contextlib
import dataclasses
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.tiny import assert_same, initial_state, make_run
from tiny_align_jax.data import batching
from tiny_align_jax.train import loop
from tiny_align_jax.train.checkpoint import Checkpointer
from tiny_align_jax.train.partition import path_name
from tiny_align_jax.types import CheckpointError, ConfigError, NonFiniteLossError

# Most tests run the paper's objective in one bucket, one step at a time: one compiled program.


def _fit(run, workdir, **kwargs):
    return loop.fit(run, initial_state(run), workdir, progress=False, **kwargs)


def _all_lines(workdir):
    return [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]


def _lines(workdir):
    """What two equal runs log alike: all but the clock."""
    return [line for line in _all_lines(workdir) if "train_s" not in line]


def _losses(workdir):
    return {line["step"]: line["loss"] for line in _lines(workdir) if "loss" in line}


@contextlib.contextmanager
def _before_step(number, action):
    """Calls `action` as step `number` is about to run."""
    real = loop._Dispatcher.__call__

    def spy(self, state, frozen, group, batches):
        if group.first_step < number <= group.first_step + len(group.index_KB):
            action()
        return real(self, state, frozen, group, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Dispatcher, "__call__", spy)
        yield


def _kill():
    raise RuntimeError("killed")


# ---- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "num_steps", "share"), [("embedlink", 60, 0.8), ("embedlink_ctc", 150, 0.3)]
)
def test_learns_the_patterns(tmp_path, objective, num_steps, share):
    run = make_run(objective=objective, num_steps=num_steps)
    result = _fit(run, tmp_path)
    losses = _losses(tmp_path)
    assert list(losses) == list(range(1, num_steps + 1))
    assert np.mean(list(losses.values())[-10:]) < share * losses[1]
    assert result.finished and (result.first_step, result.step) == (0, num_steps)
    assert result.compile_s > 0 and result.train_s > 0


@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_resident_and_streamed_steps_agree(tmp_path, steps_per_dispatch):
    values = {"num_steps": 8, "steps_per_dispatch": steps_per_dispatch}
    resident = _fit(make_run(resident="always", **values), tmp_path / "resident")
    streamed = _fit(make_run(resident="never", **values), tmp_path / "streamed")
    assert list(_losses(tmp_path / "resident")) == list(range(1, 9))
    for step, loss in _losses(tmp_path / "resident").items():
        assert _losses(tmp_path / "streamed")[step] == pytest.approx(loss, rel=1e-4)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(resident.params),
        jax.tree.leaves(streamed.params),
        strict=True,
    )
    for (path, a), b in pairs:
        # The true gradient of a bias on attention keys is zero; Adam blows up its rounding errors.
        if path_name(path) != "projector/layers/attention/key/bias":
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=path_name(path))


def test_a_whole_epoch_in_one_dispatch(tmp_path, monkeypatch):
    sizes = []
    real = loop._Dispatcher.__call__

    def spy(self, state, frozen, group, batches):
        sizes.append(len(group.index_KB))
        return real(self, state, frozen, group, batches)

    monkeypatch.setattr(loop._Dispatcher, "__call__", spy)
    epoch = _fit(make_run(num_steps=8, steps_per_dispatch=0), tmp_path / "epoch")
    assert sizes == [6, 2]  # 24 utterances in batches of four, and what was left of eight steps
    same = _fit(make_run(num_steps=8, steps_per_dispatch=6), tmp_path / "six")
    assert_same(epoch.params, same.params)
    with pytest.raises(ConfigError, match="steps_per_dispatch=0 needs the corpus on the device"):
        _fit(make_run(steps_per_dispatch=0, resident="never"), tmp_path / "streamed")


def test_seconds_of_input_are_a_part_of_training(tmp_path, monkeypatch):
    real = batching.gather

    def slow(*args):
        time.sleep(0.05)
        return real(*args)

    run = make_run(num_steps=6, resident="never", validate=lambda params: {"wer": 0.5})
    quick = _fit(run, tmp_path / "quick")
    monkeypatch.setattr(batching, "gather", slow)
    result = _fit(run, tmp_path / "slow")
    # The first batch is waited for; the others are made while steps of a few milliseconds run.
    assert result.input_s >= quick.input_s + 0.05 and quick.input_s > 0
    assert result.input_s <= result.train_s
    (line,) = (line for line in _all_lines(tmp_path / "slow") if "train_s" in line)
    assert line["input_share"] == pytest.approx(result.input_s / line["train_s"], rel=0.01)


def test_streamed_training_takes_no_more_memory_for_a_larger_corpus(tmp_path, monkeypatch):
    """A resident corpus takes its own bytes more: tests/benchmark_test.py."""
    made = []
    real = loop._Dispatcher.__init__

    def spy(self, *args):
        real(self, *args)
        made.append(self)

    monkeypatch.setattr(loop._Dispatcher, "__init__", spy)
    for num_examples in (24, 240):
        run = make_run(num_examples=num_examples, num_steps=1, resident="never")
        _fit(run, tmp_path / f"{num_examples}")
    (few,), (many,) = (
        [program.memory_analysis() for program in dispatch._compiled.values()] for dispatch in made
    )
    assert few.temp_size_in_bytes > 0 and many.temp_size_in_bytes == few.temp_size_in_bytes
    assert many.argument_size_in_bytes == few.argument_size_in_bytes


def test_average_is_exported_and_lies_off_the_last_parameters(tmp_path):
    averaged = _fit(make_run(average_decay=0.9), tmp_path / "a")
    last = _fit(make_run(), tmp_path / "b")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(averaged.params))
    far = jax.tree.map(lambda a, b: np.abs(a - b).max(), averaged.params, last.params)
    assert max(jax.tree.leaves(far)) > 1e-4


def test_compiles_once_a_bucket(tmp_path, monkeypatch):
    counted = []
    real = loop._Dispatcher.__init__

    def spy(self, *args):
        real(self, *args)
        counted.append(self)

    monkeypatch.setattr(loop._Dispatcher, "__init__", spy)
    # Four steps a dispatch of an epoch of seven: short groups are padded, not compiled anew.
    run = make_run(num_steps=23, steps_per_dispatch=4, num_buckets=2, resident="always")
    assert _fit(run, tmp_path).step == 23
    assert len(counted[0]._compiled) == 2


def test_a_batch_larger_than_the_corpus(tmp_path):
    run = make_run(num_examples=2, batch_size=4, num_steps=3)
    assert _fit(run, tmp_path).finished
    assert all(np.isfinite(loss) for loss in _losses(tmp_path).values())


def test_bfloat16_compute_keeps_float32_parameters(tmp_path):
    run = make_run(num_steps=4)
    projector = run.spec.projector.clone(dtype=jnp.bfloat16)
    half = dataclasses.replace(run, spec=dataclasses.replace(run.spec, projector=projector))
    params = _fit(half, tmp_path / "half").params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    _fit(run, tmp_path / "full")
    a, b = _losses(tmp_path / "half"), _losses(tmp_path / "full")
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=0.03)


# ---- validation and logs ----------------------------------------------------------------------


def test_stops_when_validation_no_longer_improves(tmp_path):
    scores = iter([0.9, 0.7, 0.8, 0.7, 0.6])
    run = make_run(
        validate=lambda params: {"wer": next(scores)}, num_steps=60, validate_every=2, patience=2
    )
    result = _fit(run, tmp_path)
    assert result.finished and (result.step, result.stopped) == (8, "patience=2")
    assert (result.best["wer"], result.best["step"]) == (0.7, 4)
    # The best one's seconds are rounded to hundredths.
    assert 0 < result.best["train_s"] <= result.train_s + 0.005
    assert result.validation == {"wer": 0.7}
    clock = [line["train_s"] for line in _all_lines(tmp_path) if "train_s" in line]
    assert len(clock) == 4 and clock == sorted(clock)


def test_stops_when_time_is_up(tmp_path):
    result = _fit(make_run(num_steps=60, max_train_s=1e-9), tmp_path)
    assert result.finished and result.step == 0 and result.stopped == "max_train_s=1e-09"
    with pytest.raises(ConfigError, match=r"max_train_s=-1.*patience needs validations"):
        loop.Config(max_train_s=-1, patience=3)


def test_validates_when_told_and_at_the_end(tmp_path):
    seen = []

    def validate(params):
        seen.append(jax.tree.map(np.array, params))
        return {"wer": 1.0 / len(seen)}

    run = make_run(num_steps=7, validate_every=3, log_every=2, validate=validate)
    result = _fit(run, tmp_path)
    scores = {x["step"]: x["validation/wer"] for x in _lines(tmp_path) if "validation/wer" in x}
    assert scores == pytest.approx({3: 1.0, 6: 0.5, 7: 0.333333}, abs=1e-6)
    assert result.validation == {"wer": 1 / 3}
    assert list(_losses(tmp_path)) == [2, 4, 6, 7]
    assert_same(seen[-1], result.params)
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_finished_run_stays_as_it_is(tmp_path):
    run = make_run(num_steps=4, validate=lambda params: {"wer": 0.5})
    first = _fit(run, tmp_path)
    lines = _lines(tmp_path)
    again = _fit(run, tmp_path)
    assert (again.first_step, again.step, again.finished) == (4, 4, True)
    assert_same(again.params, first.params)
    assert again.validation == {"wer": 0.5} and _lines(tmp_path) == lines


# ---- stopping and going on --------------------------------------------------------------------


def test_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path):
    validate = lambda params: {"norm": float(optax.tree_utils.tree_norm(params))}  # noqa: E731
    run = make_run(
        num_steps=9, checkpoint_every=4, validate_every=2, average_decay=0.9, validate=validate
    )
    whole = _fit(run, tmp_path / "whole")
    with _before_step(7, _kill), pytest.raises(RuntimeError, match="killed"):
        _fit(run, tmp_path / "parts")
    with (tmp_path / "parts" / "train.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # what a kill in the middle of a write leaves
    resumed = _fit(run, tmp_path / "parts")
    assert (resumed.first_step, resumed.step) == (4, 9)
    assert_same(whole.params, resumed.params)
    assert _lines(tmp_path / "whole") == _lines(tmp_path / "parts")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
    run = make_run(num_steps=8)
    handler = signal.getsignal(number)
    with _before_step(5, lambda: os.kill(os.getpid(), number)):
        stopped = _fit(run, tmp_path)
    assert (stopped.finished, stopped.step) == (False, 5)
    assert signal.getsignal(number) is handler
    resumed = _fit(run, tmp_path)
    assert (resumed.finished, resumed.first_step) == (True, 5)
    assert_same(resumed.params, _fit(run, tmp_path / "whole").params)


def test_a_second_signal_is_not_caught(tmp_path):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    # A shell's background jobs ignore SIGINT, and so would pytest run from one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _before_step(3, twice), pytest.raises(KeyboardInterrupt):
            _fit(make_run(checkpoint_every=2), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert _latest(tmp_path) == 2


def test_without_resume_a_run_starts_over(tmp_path):
    _fit(make_run(num_steps=8, checkpoint_every=2), tmp_path)
    run = make_run(num_steps=3, seed=1)
    result = _fit(run, tmp_path, resume=False)
    assert (result.first_step, result.step, _latest(tmp_path)) == (0, 3, 3)
    assert list(_losses(tmp_path)) == [1, 2, 3]
    assert_same(result.params, _fit(run, tmp_path / "fresh").params)


# ---- faults -----------------------------------------------------------------------------------


def _latest(workdir):
    with Checkpointer(workdir) as saver:
        return saver.latest_step()


@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_non_finite_loss_names_step_and_utterance_and_keeps_checkpoints(
    tmp_path, steps_per_dispatch
):
    run = make_run(
        spoil=5, checkpoint_every=1, num_steps=30, seed=3, steps_per_dispatch=steps_per_dispatch
    )
    with pytest.raises(NonFiniteLossError, match=r"loss at step (\d+) .*: utt005\. ") as error:
        _fit(run, tmp_path)
    step = int(str(error.value).split("step ")[1].split()[0])
    assert step > 1  # else the test shows nothing about checkpoints
    assert max(_losses(tmp_path)) == step - 1
    with Checkpointer(tmp_path) as saver:
        assert step - 1 - steps_per_dispatch < saver.latest_step() < step
        restored = saver.restore(initial_state(run))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.trainable))


def test_full_disk_is_a_clear_error_and_old_checkpoints_stay(tmp_path, monkeypatch):
    run = make_run(num_steps=8, checkpoint_every=2)
    real = Checkpointer._require_space

    def full_from_four(self, num_bytes):
        if (self.latest_step() or 0) >= 4:
            monkeypatch.setattr("shutil.disk_usage", lambda path: type("u", (), {"free": 10})())
        real(self, num_bytes)

    monkeypatch.setattr(Checkpointer, "_require_space", full_from_four)
    with pytest.raises(CheckpointError, match=r"free some space.*resumes at step 4"):
        _fit(run, tmp_path)
    monkeypatch.undo()
    assert _latest(tmp_path) == 4
    assert _fit(run, tmp_path).finished


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    _fit(make_run(num_steps=1), tmp_path)
    other = make_run(projector_values={"mlp_dim": 48}, num_steps=2)
    with pytest.raises(CheckpointError, match="another config") as error:
        _fit(other, tmp_path)
    assert "trainable/projector/output_mlp/up/kernel: (16, 32) there, (16, 48) here" in str(
        error.value
    )


def test_impossible_settings_are_all_named():
    with pytest.raises(ConfigError) as error:
        loop.Config(batch_size=0, log_every=0, resident="yes", compute_dtype="float16")
    for part in ("batch_size=0", "log_every=0", "'yes'; expected one of auto", "'float16'"):
        assert part in str(error.value)
