"""Many users in one run: a user's copy does not depend on the others, learns, and knows only its rows."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import tiny
from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.adapt import fit, material, spread
from tiny_align_jax.aligner import Ear
from tiny_align_jax.data import augment
from tiny_align_jax.train import loop

# One program for all tests: compiling takes most of their time.
METHOD = delta_lib.Method(low_rank=("projector/.*kernel",), rank=2, frames="affine")
CONFIG = fit.Config(
    steps_per_checkpoint=8,
    num_checkpoints=2,
    batch_size=4,
    replay_size=2,
    augment=augment.Config(0, 0.0, 0.0),
    jobs_at_once=2,
    keep_deltas=True,
)
A, B, C = (0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11), (12, 13, 14, 15, 16, 17)
HELD_BACK = (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def base():
    return make_base()


def make_base():
    run = tiny.make_run(objective="embedlink_ctc")
    ear = Ear(run.spec.projector, run.spec.objective, run.spec.objective_config)
    frames = [run.examples.frames(i) for i in range(len(run.examples))]
    lengths = run.examples.num_targets_N
    targets = [row[:n] for row, n in zip(run.examples.target_ids_NL, lengths, strict=True)]
    corpus = material.frames_corpus(frames, targets, 64)
    return ear, loop.init_params(run), run.frozen, corpus


def _run(
    base,
    rows,
    train=HELD_BACK,
    valid=None,
    bias=None,
    rate=1e-2,
    corpus=None,
    stop=16,
    config=CONFIG,
):
    ear, params, frozen, replay = base
    jobs, settings = make_jobs(rows, train, valid, bias, rate, stop)
    own = replay if corpus is None else corpus
    return fit.run(fit.Spec(ear, METHOD, config), params, frozen, own, replay, jobs, settings)


def make_jobs(rows, train=HELD_BACK, valid=None, bias=None, rate=1e-2, stop=16):
    """Copies of users with these rows, and how they learn."""
    count = len(rows)
    train = np.tile(np.array(train, np.float32), (count, 1))
    keys = jax.vmap(jax.random.key)(jnp.zeros(count, int))
    jobs = fit.Jobs(
        rows_JS=np.array(rows, np.int32),
        train_JS=train,
        valid_JS=1 - train if valid is None else np.tile(np.array(valid, np.float32), (count, 1)),
        row_bias_JV=np.zeros((count, tiny.NUM_ROWS), np.float32) if bias is None else bias,
        key_J=np.asarray(jax.random.key_data(keys)),
    )
    settings = fit.Settings(
        jnp.float32(rate), jnp.float32(0.0), jnp.float32(0.2), stop_step=jnp.int32(stop)
    )
    return jobs, settings


def test_one_copy_after_the_other_is_as_both_at_once(base):
    together = _run(base, (A, B))
    alone = _run(base, (A, B), config=dataclasses.replace(CONFIG, jobs_at_once=1))
    np.testing.assert_allclose(together.valid_loss_JC, alone.valid_loss_JC, rtol=1e-4)
    np.testing.assert_array_equal(together.readings_JCSA, alone.readings_JCSA)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), together.delta, alone.delta
    )


def test_two_devices_make_the_copies_of_one(base, tmp_path):
    """Three copies: the second device has one to spare."""
    there = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    saved = tmp_path / "two.npz"
    subprocess.run([sys.executable, "-m", __name__, str(saved)], env=there, check=True)
    two = np.load(saved)
    assert two["devices"] == 2 and len(two["valid_loss_JC"]) == 3
    for rows, jobs in (((A, B), [0, 1]), ((A, C), [0, 2])):
        here = _run(base, rows)
        np.testing.assert_allclose(two["valid_loss_JC"][jobs], here.valid_loss_JC, rtol=1e-4)
        np.testing.assert_array_equal(two["readings_JCSA"][jobs], here.readings_JCSA)
        for name, value in here.delta.items():
            np.testing.assert_allclose(two[name][jobs], value, atol=1e-4)


def _save_what_two_devices_make(path):
    ear, params, frozen, corpus = make_base()
    jobs, settings = make_jobs((A, B, C))
    spec = fit.Spec(ear, METHOD, CONFIG)
    trace = spread.run(spec, params, frozen, corpus, corpus, jobs, settings)
    losses, readings = trace.valid_loss_JC, trace.readings_JCSA
    arrays = {"valid_loss_JC": losses, "readings_JCSA": readings, **trace.delta}
    np.savez(path, devices=len(jax.local_devices()), **arrays)


def test_a_copy_does_not_depend_on_who_else_is_adapted(base):
    with_b, with_c = _run(base, (A, B)), _run(base, (A, C))
    np.testing.assert_array_equal(with_b.valid_loss_JC[0], with_c.valid_loss_JC[0])
    assert not np.array_equal(with_b.valid_loss_JC[1], with_c.valid_loss_JC[1])
    assert with_b.readings_JCSA.shape == (2, 3, 6, 16)


def test_the_first_checkpoint_is_the_base_and_later_ones_learn(base):
    trace = _run(base, (A, B), train=[1.0] * 6, valid=[1.0] * 6)
    first = {k: np.abs(v[:, 0]).max() for k, v in trace.delta.items() if not k.startswith("a:")}
    assert set(first.values()) == {0.0}
    losses = np.asarray(trace.valid_loss_JC)
    assert (losses[:, 0] > losses[:, 1]).all() and (losses[:, 1] > losses[:, 2]).all()


def test_a_copy_that_stops_early_is_the_longer_ones_checkpoint(base):
    stopped, whole = _run(base, (A, B), stop=8), _run(base, (A, B))
    for name, found in stopped.delta.items():
        np.testing.assert_array_equal(found[:, -1], whole.delta[name][:, 1])
        np.testing.assert_array_equal(found[:, 1], found[:, -1])


def test_without_validation_rows_there_is_no_validation_loss(base):
    assert np.isnan(_run(base, (A, B), train=[1.0] * 6).valid_loss_JC).all()


def test_rows_that_do_not_train_change_nothing(base):
    corpus = base[3]
    spoiled = corpus.inputs.copy()
    spoiled[5] = np.nan
    trace = _run(base, (A, B), corpus=corpus.replace(inputs=spoiled))
    clean = _run(base, (A, B))
    jax.tree.map(np.testing.assert_array_equal, trace.delta, clean.delta)


def test_a_row_bias_hides_rows_from_the_users_that_have_it(base):
    heard = np.unique(_run(base, (A, A)).readings_JCSA)
    row = int(heard[heard >= 0][0])
    bias = np.zeros((2, tiny.NUM_ROWS), np.float32)
    bias[1, row] = -1e9
    trace = _run(base, (A, A), bias=bias)
    free, hidden = (set(np.unique(x).tolist()) for x in trace.readings_JCSA)
    assert row in free and row not in hidden
    assert heard[0] == fit.NOTHING


if __name__ == "__main__":
    _save_what_two_devices_make(sys.argv[1])
