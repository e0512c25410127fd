"""Many users in one run: alone or together the same, learning what they say, nothing else touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import tiny
from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.adapt import fit, material
from tiny_align_jax.aligner import Ear
from tiny_align_jax.data import augment
from tiny_align_jax.train import loop

NUM_OWN = 6
METHODS = {
    "whole": delta_lib.Method(offsets=("projector/.*",)),
    "low_rank": delta_lib.Method(low_rank=("projector/.*kernel",), rank=2, frames="affine"),
}


@pytest.fixture(scope="module")
def base():
    run = tiny.make_run(objective="embedlink_ctc")
    ear = Ear(run.spec.projector, run.spec.objective, run.spec.objective_config)
    frames = [run.examples.frames(i) for i in range(len(run.examples))]
    targets = [
        row[:n]
        for row, n in zip(run.examples.target_ids_NL, run.examples.num_targets_N, strict=True)
    ]
    corpus = material.frames_corpus(frames, targets, 64)
    return ear, loop.init_params(run), run.frozen, corpus


def _run(base, method, rows=((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)), train=None, **values):
    ear, params, frozen, corpus = base
    sizes = {"steps_per_checkpoint": 4, "num_checkpoints": 2, "batch_size": 4, "replay_size": 2}
    config = fit.Config(augment=augment.Config(0, 0.0, 0.0), **{**sizes, **values})
    rows = np.array(rows, np.int32)
    train = np.ones(rows.shape, np.float32) if train is None else np.array(train, np.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(rows)))
    jobs = fit.Jobs(
        rows_JS=rows,
        train_JS=train,
        valid_JS=1.0 - train,
        row_bias_JV=np.zeros((len(rows), tiny.NUM_ROWS), np.float32),
        key_J=jax.random.key_data(keys),
    )
    settings = fit.Settings(jnp.float32(1e-2), jnp.float32(0.0), jnp.float32(0.2))
    spec = fit.Spec(ear, method, config)
    return fit.run(spec, params, frozen, corpus, corpus, jobs, settings)


@pytest.mark.parametrize("name", METHODS)
def test_a_job_is_the_same_alone_and_among_others(base, name):
    train = [[1, 1, 1, 1, 1, 0]] * 2
    together = _run(base, METHODS[name], train=train, jobs_at_once=2)
    alone = _run(base, METHODS[name], train=train, jobs_at_once=1)
    np.testing.assert_allclose(together.valid_loss_JC, alone.valid_loss_JC, rtol=2e-3, atol=2e-3)
    assert together.readings_JCSA.shape == (2, 3, NUM_OWN, 16)


def test_adaptation_lowers_the_loss_of_what_it_trains_on(base):
    # Validated on rows it also trains on: 0 in train_JS of the second job only.
    trace = _run(base, METHODS["whole"], train=[[1] * 6, [1, 1, 1, 1, 0, 0]], num_checkpoints=4)
    assert np.isnan(trace.valid_loss_JC[0]).all()  # nothing held back
    losses = np.asarray(trace.valid_loss_JC[1])
    assert losses[0] > losses[-1]


def test_rows_that_do_not_train_do_not_matter(base):
    ear, params, frozen, corpus = base
    spoiled = corpus.inputs.copy()
    spoiled[5] = np.nan
    train = [[1, 1, 1, 1, 1, 0]]
    trace = _run(
        (ear, params, frozen, corpus.replace(inputs=spoiled)),
        METHODS["low_rank"],
        rows=[[0, 1, 2, 3, 4, 5]],
        train=train,
        replay_size=0,
        keep_deltas=True,
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trace.delta))
    first = jax.tree.map(lambda x: np.abs(x[0, 0]).max(), trace.delta)
    assert all(v == 0 for k, v in first.items() if not k.startswith("a:"))


def test_a_row_bias_hides_rows_from_readings(base):
    ear, params, frozen, corpus = base
    open_rows = np.unique(_run(base, METHODS["low_rank"]).readings_JCSA)
    hidden = int(open_rows[open_rows >= 0][0])
    bias = np.zeros((1, tiny.NUM_ROWS), np.float32)
    bias[0, hidden] = -1e9
    jobs = fit.Jobs(
        rows_JS=np.arange(6, dtype=np.int32)[None],
        train_JS=np.ones((1, 6), np.float32),
        valid_JS=np.zeros((1, 6), np.float32),
        row_bias_JV=bias,
        key_J=jax.random.key_data(jax.random.split(jax.random.key(0), 1)),
    )
    config = fit.Config(4, 2, 4, 2, augment=augment.Config(0, 0.0, 0.0))
    settings = fit.Settings(jnp.float32(1e-2), jnp.float32(0.0), jnp.float32(0.2))
    spec = fit.Spec(ear, METHODS["low_rank"], config)
    trace = fit.run(spec, params, frozen, corpus, corpus, jobs, settings)
    assert hidden not in np.unique(trace.readings_JCSA)
