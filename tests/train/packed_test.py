"""Packed training, which accelerators run, against the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.tiny import assert_same, initial_state, make_run
from tiny_align_jax.data import batching
from tiny_align_jax.train import packed
from tiny_align_jax.train import step as step_lib
from tiny_align_jax.train.partition import path_name

FIXED = {"trainable": (".*",), "average_decay": 0.9}
PARTLY = {
    "trainable": ("projector/(layers|output_mlp|output_norm)/.*", "objective/.*"),
    "fixed": ("projector/(input_mlp|encoder_norm)/.*",),
}
RUNS = {"all, averaged": FIXED, "some": PARTLY}


def _batches(run, steps=3):
    rows, weights = np.arange(4), np.ones(4, np.float32)
    batch = batching.gather(run.examples, rows, weights, 64)
    return jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * steps), batch)


@pytest.mark.parametrize("name", RUNS)
def test_packed_steps_are_the_plain_ones(name, monkeypatch):
    run = make_run(objective="embedlink_ctc", **RUNS[name])
    make = step_lib.make_stream_steps.__wrapped__
    results = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        results.append(make(run.spec)(initial_state(run), run.frozen, _batches(run)))
    (plain, plain_logs), (ours, logs) = results
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path((ours, logs)),
        jax.tree.leaves((plain, plain_logs)),
        strict=True,
    ):
        # Keys' biases cancel in the softmax: their gradient is rounding, which Adam makes a step of.
        if not path_name(path).endswith("key/bias"):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=path_name(path))


def test_layout_is_undone_and_keeps_apart_what_is_not_decayed():
    run = make_run(objective="embedlink_ctc")
    state = initial_state(run)
    layout = packed.Layout(state.trainable, jnp.float32)
    vectors = layout.pack(state.trainable)
    assert set(vectors) == {"projector/matrices", "vectors"}
    assert sum(v.size for v in vectors.values()) == sum(
        x.size for x in jax.tree.leaves(state.trainable)
    )
    assert_same(layout.unpack(vectors), state.trainable)
    assert_same(layout.unpack_state(layout.pack_state(state)), state)
    assert len(jax.tree.leaves(layout.pack_state(state).opt_state)) < len(
        jax.tree.leaves(state.opt_state)
    )
