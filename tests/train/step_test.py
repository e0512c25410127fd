"""One step: which rows count, which parameters move, and where its random numbers come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.tiny import AUGMENT, initial_state, make_run
from tiny_align_jax.data import augment, batching
from tiny_align_jax.objectives import embedlink_ctc
from tiny_align_jax.train import step as step_lib
from tiny_align_jax.train.partition import leaf_names

RUN = make_run(objective="embedlink_ctc")
QUIET = augment.Config(time_masks=0, channel_mask_fraction=0.0)


def _batch(rows=(0, 1, 2, 3), weights=(1, 1, 1, 1)):
    return batching.gather(RUN.examples, np.array(rows), np.array(weights, np.float32), 64)


def _spec(**values):
    projector = RUN.spec.projector.clone(
        config=dataclasses.replace(RUN.spec.projector.config, dropout=0.0)
    )
    return dataclasses.replace(RUN.spec, projector=projector, augment=QUIET, **values)


@pytest.fixture(scope="module")
def gradients():
    """(batch) -> loss, rows' losses and gradients, without dropout or augmentation."""
    spec, state = _spec(), initial_state(RUN)

    def total(trainable, batch):
        key = jax.random.key(0)
        return step_lib.loss_fn(spec, trainable, state.fixed, RUN.frozen, batch, key)

    @jax.jit
    def run(batch):
        (loss, (loss_B, metrics)), grads = jax.value_and_grad(total, has_aux=True)(
            state.trainable, batch
        )
        return loss, loss_B, metrics, grads

    return run


@pytest.mark.parametrize("rubbish", ["another row", "nan", "huge"])
def test_rows_of_no_weight_count_for_nothing(gradients, rubbish):
    expected = gradients(_batch((0, 1, 0, 0), (1, 1, 0, 0)))
    batch = _batch((0, 1, 2, 3), (1, 1, 0, 0))
    if rubbish != "another row":
        batch.features_BTE[2:] = np.nan if rubbish == "nan" else 6e4
    loss, loss_B, _, grads = gradients(batch)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    assert loss_B[2] == loss_B[3] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, expected[3])


def test_loss_is_the_mean_over_real_rows(gradients):
    loss, loss_B, _, _ = gradients(_batch((0, 1, 2, 2), (1, 1, 1, 0)))
    np.testing.assert_allclose(loss, np.mean(np.asarray(loss_B)[:3]), rtol=1e-6)
    assert np.isfinite(gradients(_batch(weights=(0, 0, 0, 0)))[0])


def test_an_utterance_squeezed_too_short_costs_nothing_and_is_counted(gradients):
    batch = _batch()
    row = int(np.argmax(batch.num_targets_B))
    batch.num_frames_B[row] = 1
    _, loss_B, metrics, grads = gradients(batch)
    assert batch.num_targets_B[row] > 1 and loss_B[row] == 0
    assert (np.delete(np.asarray(loss_B), row) > 0).all()
    assert metrics["impossible"] == 0.25
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_only_the_trainable_half_moves_and_only_it_has_moments():
    run = make_run(
        objective="embedlink_ctc",
        trainable=("projector/output_.*",),
        fixed=("projector/(?!output_).*", "objective/.*"),
    )
    state = initial_state(run)
    step = jax.jit(lambda s, b: step_lib.train_step(_spec(), s, run.frozen, b))
    after = state
    for _ in range(2):  # the first step's learning rate is zero
        after, metrics = step(after, _batch())
    assert int(after.step) == 2
    for name, a, b in zip(
        leaf_names(state.trainable),
        jax.tree.leaves(state.trainable),
        jax.tree.leaves(after.trainable),
        strict=True,
    ):
        assert np.abs(a - b).max() > 0, name
    jax.tree.map(np.testing.assert_array_equal, state.fixed, after.fixed)
    moments = after.opt_state[1][0].mu
    assert leaf_names(moments) == leaf_names(state.trainable)
    assert metrics["grad_norm"] > 0


def test_random_numbers_follow_seed_and_step():
    spec = dataclasses.replace(RUN.spec, augment=AUGMENT)
    step = jax.jit(lambda s, b: step_lib.train_step(spec, s, RUN.frozen, b)[1]["loss"])
    state = initial_state(RUN)
    first = step(state, _batch())
    assert step(state, _batch()) == first
    assert step(state.replace(step=jnp.int32(1)), _batch()) != first
    other = state.replace(key=jax.random.key_data(jax.random.key(1)))
    assert step(other, _batch()) != first


def test_average_follows_fast_at_first_and_slowly_later():
    run = make_run(average_decay=0.99)
    spec, state = run.spec, initial_state(run)
    batch = batching.gather(run.examples, np.arange(4), np.ones(4, np.float32), 64)
    step = jax.jit(lambda s, b: step_lib.train_step(spec, s, run.frozen, b)[0])
    for number, decay in ((1, 2 / 11), (5000, 0.99)):
        before = state.replace(step=jnp.int32(number))
        after = step(before, batch)
        expected = jax.tree.map(
            lambda a, p, d=decay: d * a + (1 - d) * p, before.average, after.trainable
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.average, expected
        )


@pytest.mark.parametrize("centre", [False, True])
def test_validation_reads_with_what_was_prepared_for_training(centre):
    config = dataclasses.replace(RUN.spec.objective_config, centre=centre)
    plain = dataclasses.replace(RUN.frozen, constants=None)
    prepared = step_lib.with_constants(embedlink_ctc, config, plain)
    params = embedlink_ctc.init(config, jax.random.key(1), plain)
    audio_BAD = jax.random.normal(jax.random.key(2), (2, 5, plain.table_VD.shape[1]))
    expected = embedlink_ctc.log_probs(config, params, audio_BAD, plain)
    # The table itself is not looked at again.
    elsewhere = dataclasses.replace(prepared, table_VD=jnp.full_like(plain.table_VD, jnp.nan))
    found = embedlink_ctc.log_probs(config, params, audio_BAD, elsewhere)
    np.testing.assert_allclose(found, expected, atol=1e-5)
