"""The optimizer: its schedule, what decays, and what it never sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import registry
from tiny_align_jax.train import optimizer
from tiny_align_jax.train.partition import leaf_names
from tiny_align_jax.types import ConfigError


def test_learning_rate_rises_and_falls():
    config = optimizer.Config(learning_rate=2.0, warmup_fraction=0.1, final_fraction=0.05)
    rate = [float(optimizer.learning_rate(config, 100)(step)) for step in range(101)]
    assert rate[0] == 0 and rate[10] == pytest.approx(2.0) and rate[100] == pytest.approx(0.1)
    assert rate[:11] == sorted(rate[:11]) and rate[10:] == sorted(rate[10:], reverse=True)
    assert rate[55] == pytest.approx((2.0 + 0.1) / 2, rel=0.01)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(num_steps):
    rate = optimizer.learning_rate(optimizer.Config(), num_steps)
    assert all(np.isfinite(rate(step)) for step in range(num_steps + 1))


def test_weight_decay_keeps_to_matrices():
    """With no gradient at all, what changes is what decays: never a stacked norm or bias."""
    module = registry.resolve("projectors", "bridgeformer")
    config = module.Config(num_layers=2, dim=8, num_heads=2, mlp_dim=8, positions="learned")
    features = (jnp.zeros((1, 8, 6)), jnp.ones((1, 8), bool))
    shapes = jax.eval_shape(module.Projector(config, 8, 1.0).init, jax.random.key(0), *features)
    params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes["params"])
    made = optimizer.make(optimizer.Config(weight_decay=0.1, warmup_fraction=0.0), 10)
    state = made.init(params)
    for _ in range(3):
        updates, state = made.update(jax.tree.map(jnp.zeros_like, params), state, params)
    decayed = {
        n for n, u in zip(leaf_names(params), jax.tree.leaves(updates), strict=True) if u.any()
    }
    assert decayed == {n for n in leaf_names(params) if n.endswith("kernel")} | {"positions"}
    assert "layers/attention/query/bias" in leaf_names(params)  # of two axes, stacked to three


def test_gradients_are_clipped_together():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    made = optimizer.make(optimizer.Config(clip_norm=1.0, warmup_fraction=0.0), 10)
    scaled = [
        made.update(
            jax.tree.map(lambda p, s=s: jnp.full_like(p, s), params), made.init(params), params
        )
        for s in (10.0, 1000.0)
    ]
    moments = [state[1][0].mu for _, state in scaled]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *moments)


def test_equal_settings_are_one_optimizer():
    assert optimizer.make(optimizer.Config(), 10) is optimizer.make(optimizer.Config(), 10)
    assert optimizer.make(optimizer.Config(), 10) is not optimizer.make(optimizer.Config(), 11)


def test_impossible_settings_are_all_named():
    with pytest.raises(ConfigError) as error:
        optimizer.Config(learning_rate=0, warmup_fraction=1.0, b2=1, weight_decay=-1, clip_norm=-2)
    for key in (
        "learning_rate=0",
        "warmup_fraction=1.0",
        "b2=1",
        "weight_decay=-1",
        "clip_norm=-2",
    ):
        assert key in str(error.value)
