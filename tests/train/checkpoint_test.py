"""Checkpoints and the exported projector: whole or not at all, and only for the run they belong to."""

import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax.train import checkpoint
from tiny_align_jax.train.step import TrainState
from tiny_align_jax.types import CheckpointError
from tiny_align_jax.weights import safetensors


def _state(step=3, width=4, average=True, seed=0):
    """A state with every kind of leaf that a run has."""
    rng = np.random.default_rng(seed)
    trainable = {
        "projector": {"kernel": rng.normal(size=(2, width)).astype(np.float32), "fixed": None}
    }
    return TrainState(
        step=jnp.int32(step),
        trainable=trainable,
        fixed={"projector": {"kernel": None, "fixed": jnp.arange(3.0)}},
        opt_state=((), ({"mu": trainable, "count": jnp.int32(step)},)),
        average=jax.tree.map(lambda x: x / 2, trainable) if average else None,
        key=jax.random.key_data(jax.random.key(seed)),
    )


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [np.asarray(x).dtype for x in jax.tree.leaves(a)] == [
        np.asarray(x).dtype for x in jax.tree.leaves(b)
    ]


@pytest.mark.parametrize("average", [True, False])
def test_a_state_comes_back_as_it_was(tmp_path, average):
    state = _state(average=average)
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(state)
    with checkpoint.Checkpointer(tmp_path) as saver:
        _same(saver.restore(_state(step=0, seed=1, average=average)), state)


def test_keeps_the_newest_and_forgets_on_demand(tmp_path):
    assert not checkpoint.has_checkpoint(tmp_path)
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert saver.latest_step() is None and not checkpoint.has_checkpoint(tmp_path)
        for step in (1, 5, 9, 9):
            saver.save(_state(step))
        folders = {p.name for p in (tmp_path / checkpoint.STATE_FOLDER).iterdir()}
        assert folders == {"5", "9"} and saver.latest_step() == 9
        assert checkpoint.has_checkpoint(tmp_path)
        saver.clear()
        assert saver.latest_step() is None and not checkpoint.has_checkpoint(tmp_path)
        saver.save(_state(2))
        assert saver.latest_step() == 2
        with pytest.raises(CheckpointError, match=r"save step 1: .* already holds step 2"):
            saver.save(_state(1))


def test_nothing_to_restore(tmp_path):
    with (
        checkpoint.Checkpointer(tmp_path) as saver,
        pytest.raises(CheckpointError, match="no checkpoint in"),
    ):
        saver.restore(_state())


@pytest.mark.parametrize(
    ("like", "said"),
    [
        (_state(width=5), "trainable/projector/kernel: (2, 4) there, (2, 5) here"),
        (_state(average=False), "average/projector/kernel: (2, 4) there, nothing here"),
    ],
)
def test_a_state_of_another_run_is_refused_by_name(tmp_path, like, said):
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(_state())
    with (
        checkpoint.Checkpointer(tmp_path) as saver,
        pytest.raises(CheckpointError, match="another config") as error,
    ):
        saver.restore(like)
    assert said in str(error.value)


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path):
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(_state())
    for path in (tmp_path / checkpoint.STATE_FOLDER / "3").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        checkpoint.Checkpointer(tmp_path) as saver,
        pytest.raises(CheckpointError, match=r"checkpoint 3 in .* cannot be restored"),
    ):
        saver.restore(_state())


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("RESOURCE_EXHAUSTED")]
)
def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch, failure):
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(_state(1))

        def fail(*args, **kwargs):
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(saver._manager, "save", fail)
            with pytest.raises(CheckpointError, match=r"checkpoint of step 2 .*are intact"):
                saver.save(_state(2))
        _same(saver.restore(_state(0)), _state(1))


# ---- export -----------------------------------------------------------------------------------

PARAMS = {
    "projector": {
        "kernel": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "bias": np.ones(3),
    },
    "objective": {"log_scale": np.float32(2.5)},
}


def test_export_is_read_back(tmp_path):
    path = checkpoint.export(tmp_path, PARAMS, {"step": 7})
    assert path == tmp_path / checkpoint.PROJECTOR_WEIGHTS
    jax.tree.map(np.testing.assert_array_equal, safetensors.load_tree(path), PARAMS)
    assert json.loads((tmp_path / checkpoint.PROJECTOR_CARD).read_text()) == {"step": 7}


def test_export_can_halve_matrices_alone(tmp_path):
    path = checkpoint.export(tmp_path, PARAMS, {}, dtype=np.float16)
    saved = safetensors.load_tree(path)
    assert saved["projector"]["kernel"].dtype == np.float16
    assert saved["projector"]["bias"].dtype == np.float64
    assert saved["objective"]["log_scale"].dtype == np.float32


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"a": 1})

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"exported projector .*disk (is )?full"):
        checkpoint.export(tmp_path, PARAMS, {"a": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}
