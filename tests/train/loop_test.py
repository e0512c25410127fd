"""The loop: it learns, resumes bit for bit, streams as it resides, and fails without losing work."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from tests.train.tiny import assert_same, initial_state, make_run
from tiny_align_jax.train import loop
from tiny_align_jax.train.checkpoint import Checkpointer
from tiny_align_jax.types import CheckpointError, NonFiniteLossError


def _fit(run, workdir, **kwargs):
    return loop.fit(run, initial_state(run), workdir, progress=False, **kwargs)


def _losses(workdir):
    lines = [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_learns_the_patterns(tmp_path):
    _fit(make_run(num_steps=150, log_every=1, num_buckets=1), tmp_path)
    losses = _losses(tmp_path)
    assert np.mean([losses[s] for s in range(140, 151)]) < 0.3 * losses[1]


def test_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path):
    whole = _fit(make_run(num_steps=9), tmp_path / "whole")
    run = make_run(num_steps=9, checkpoint_every=4)
    with pytest.MonkeyPatch.context() as patch:
        real, calls = loop._Dispatcher.__call__, []

        def stop_at_six(self, state, frozen, group):
            calls.append(group)
            if len(calls) == 7:
                raise KeyboardInterrupt
            return real(self, state, frozen, group)

        patch.setattr(loop._Dispatcher, "__call__", stop_at_six)
        with pytest.raises(KeyboardInterrupt):
            _fit(run, tmp_path / "parts")
    resumed = _fit(run, tmp_path / "parts")
    assert_same(whole.params, resumed.params)
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")


@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_resident_and_streamed_steps_agree(tmp_path, steps_per_dispatch):
    results = [
        _fit(
            make_run(resident=where, steps_per_dispatch=steps_per_dispatch), tmp_path / str(where)
        )
        for where in ("always", "never")
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        results[0].params,
        results[1].params,
    )


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    run = make_run(num_steps=12)
    with pytest.MonkeyPatch.context() as patch:
        real = loop._Dispatcher.__call__

        def terminate_at_five(self, state, frozen, group):
            if group.first_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, state, frozen, group)

        patch.setattr(loop._Dispatcher, "__call__", terminate_at_five)
        stopped = _fit(run, tmp_path)
    assert not stopped.finished and 5 <= stopped.step < 12
    resumed = _fit(run, tmp_path)
    assert resumed.finished
    assert_same(resumed.params, _fit(make_run(num_steps=12), tmp_path / "whole").params)


def test_non_finite_loss_names_step_and_utterance_and_keeps_checkpoints(tmp_path):
    run = make_run(spoil=5, checkpoint_every=1, num_steps=30)
    with pytest.raises(NonFiniteLossError, match=r"step \d+ .*utt005"):
        _fit(run, tmp_path)
    with Checkpointer(tmp_path) as saver:
        if saver.latest_step() is not None:
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
    with pytest.raises(CheckpointError, match="free some space"):
        _fit(run, tmp_path)
    monkeypatch.undo()
    with Checkpointer(tmp_path) as saver:
        assert saver.latest_step() == 4
    assert _fit(run, tmp_path).finished


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    _fit(make_run(), tmp_path)
    other = make_run(projector_values={"dim": 32}, num_steps=10)
    with pytest.raises(CheckpointError, match="another config"):
        _fit(other, tmp_path)


def test_average_is_exported_and_lies_off_the_last_parameters(tmp_path):
    averaged = _fit(make_run(average_decay=0.9, num_steps=20), tmp_path / "a")
    last = _fit(make_run(num_steps=20), tmp_path / "b")
    assert np.isfinite(jax.tree.leaves(averaged.params)[0]).all()
    with pytest.raises(AssertionError):
        assert_same(averaged.params, last.params)


def test_compiles_once_a_bucket(tmp_path, monkeypatch):
    counted = []
    real = loop._Dispatcher.__init__

    def spy(self, *args):
        real(self, *args)
        counted.append(self)

    monkeypatch.setattr(loop._Dispatcher, "__init__", spy)
    _fit(make_run(num_steps=40, steps_per_dispatch=4, resident="always"), tmp_path)
    assert len(counted[0]._compiled) <= 2


def test_embedlink_trains_without_parameters_of_its_own(tmp_path):
    run = make_run(
        objective="embedlink",
        projector_values={"pooling": "adaptive", "num_tokens": 8},
        trainable=("projector/.*",),
        num_steps=60,
        num_buckets=1,
    )
    _fit(run, tmp_path)
    losses = _losses(tmp_path)
    assert np.mean([losses[s] for s in range(50, 61)]) < 0.8 * losses[1]
