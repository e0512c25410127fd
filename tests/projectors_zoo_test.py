"""Every projector: what is particular to its kind, beyond the contracts that all plug-ins share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import matching, registry
from tiny_align_jax.types import ConfigError

TINY = {
    "linear": {"stack": 2},
    "mlp": {"stack": 2, "hidden_dim": 16, "num_hidden": 2},
    "conv": {"num_layers": 2, "dim": 8, "kernel_width": 4, "num_strided": 2},
    "qformer": {
        "num_tokens": 3,
        "dim": 8,
        "num_heads": 2,
        "mlp_dim": 16,
        "num_layers": 2,
        "stack": 2,
    },
    "conformer": {
        "dim": 8,
        "num_heads": 2,
        "mlp_dim": 16,
        "num_layers": 2,
        "kernel_width": 3,
        "stack": 2,
    },
    "bridgeformer": {"dim": 8, "num_heads": 2, "mlp_dim": 16, "num_layers": 2, "stack": 2},
    "cif": {
        "dim": 8,
        "num_heads": 2,
        "mlp_dim": 16,
        "num_layers": 2,
        "stack": 2,
        "num_tokens": 4,
    },
}
CASES = [(name, {}) for name in TINY]
CASES += [("linear", {"pooling": "adaptive"}), ("conv", {"pooling": "stride"})]
CASES += [("conformer", {"pooling": "attention"}), ("qformer", {"window": 3})]
CASES += [("conformer", {"positions": "learned"})]
IN, OUT, FRAMES = 6, 10, 25


def _make(name, values, seed=0):
    module = registry.resolve("projectors", name)
    config = registry.make_config(module, TINY[name] | values)
    projector = module.Projector(config, OUT, 0.5)
    variables = projector.init(
        jax.random.key(seed), jnp.zeros((1, 32, IN)), jnp.ones((1, 32), bool)
    )
    return module, config, projector, variables


def _inputs(lengths, frames, seed=1):
    features = np.random.default_rng(seed).normal(size=(len(lengths), frames, IN))
    mask = np.arange(frames)[None] < np.array(lengths)[:, None]
    return features.astype(np.float32), mask


@pytest.mark.parametrize(("name", "values"), CASES)
def test_length_scale_padding_and_batch(name, values):
    module, config, projector, variables = _make(name, values)
    apply = jax.jit(projector.apply)
    features, mask = _inputs([FRAMES, 11, 1], FRAMES)
    audio, valid = apply(variables, features, mask)
    for row, length in enumerate((FRAMES, 11, 1)):
        assert valid[row].sum() == module.num_audio_tokens(config, length)
    rms = np.sqrt(np.mean(np.square(audio[np.asarray(valid)]), axis=-1))
    np.testing.assert_allclose(rms, 0.5, rtol=1e-2)
    # Garbage behind the utterance, an odd number of extra frames and company change nothing.
    longer, longer_mask = _inputs([11], FRAMES + 8, seed=9)
    longer[:, :11] = features[1:2, :11]
    alone, alone_valid = apply(variables, longer, longer_mask)
    count = module.num_audio_tokens(config, 11)
    assert alone_valid.sum() == count
    np.testing.assert_allclose(alone[0, :count], audio[1, :count], atol=2e-5)


@pytest.mark.parametrize(("name", "values"), [*((n, {}) for n in TINY), ("qformer", {"window": 3})])
def test_gradients_are_finite_and_reach_every_parameter(name, values):
    *_, projector, variables = _make(name, values)
    features, mask = _inputs([FRAMES, 0], FRAMES)

    def loss(variables):
        audio, valid = projector.apply(
            variables, features, mask, train=True, rngs={"dropout": jax.random.key(3)}
        )
        return jnp.sum(jnp.sin(3 * audio) * valid[..., None])

    grads = jax.jit(jax.grad(loss))(variables)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        # A bias on attention keys shifts all scores alike; exactly zero is its true gradient.
        if "'key'" not in str(path):
            assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("name", sorted(TINY))
def test_learned_order(name):
    """Two halves swapped must change the reading, or the projector could never spell."""
    values = {"positions": "sinusoidal"} if name == "bridgeformer" else {}
    *_, projector, variables = _make(name, values)
    features, mask = _inputs([24], 24)
    swapped = np.concatenate([features[:, 12:], features[:, :12]], axis=1)
    a = projector.apply(variables, features, mask)[0]
    b = projector.apply(variables, swapped, mask)[0]
    assert np.abs(a - b).max() > 1e-3


def test_integrate_and_fire_shares_a_frame_between_two_tokens():
    """Weights 0.7, 0.6, 0.9, 0.3: tokens fire at 1 and 2; the third is half full."""
    cif = registry.resolve("projectors", "cif")
    frames = np.array([[[1.0, 0], [0, 1.0], [2.0, 0], [0, 4.0]]], np.float32)
    weights = np.array([[0.7, 0.6, 0.9, 0.3]], np.float32)
    empty = np.array([10.0, 20.0], np.float32)
    fired = cif.fire(frames, weights, empty, 4)
    expected = [[0.7, 0.3], [0.7 * 2, 0.3], [0.2 * 2, 0.3 * 4], [0, 0]]
    missing = np.array([[0], [0], [0.5], [1]]) * empty
    np.testing.assert_allclose(fired[0], expected + missing, rtol=1e-5)


def test_spans_of_a_window_are_stretches_of_time():
    """Longer speech fills more places and leaves the first ones as they were, but for what is heard later."""
    bridge = registry.resolve("projectors", "bridgeformer")
    values = {"pooling": "window", "num_tokens": 5, "pool_stride": 3, "stack": 2}
    config = registry.make_config(bridge, TINY["bridgeformer"] | values)
    x = np.arange(8, dtype=np.float32)[None, :, None] * np.ones(8, np.float32)
    mask = np.arange(8)[None] < np.array([[7], [2]])
    empty = np.full(8, -1, np.float32)
    spans = bridge._window_average(np.repeat(x, 2, 0), mask, config, empty)[..., 0]
    np.testing.assert_allclose(spans, [[1, 4, 6, -1, -1], [0.5, -1, -1, -1, -1]])
    few = dataclasses.replace(config, num_tokens=2)  # what lies behind the last span is not read
    np.testing.assert_allclose(
        bridge._window_average(x, mask[:1], few, empty)[0, :, 0], spans[0, :2]
    )


def test_windows_do_not_see_each_other():
    _, _, projector, variables = _make("qformer", {"window": 3})
    features, mask = _inputs([24], 24)
    changed = features.copy()
    changed[:, 12:] += 1.0  # a window is 3 x 2 frames: the third and fourth change
    a, b = (np.asarray(projector.apply(variables, x, mask)[0]) for x in (features, changed))
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert (np.abs(a[:, 6:] - b[:, 6:]).max(-1) > 1e-4).all()


@pytest.mark.parametrize("name", [n for n in TINY if n != "linear"])
def test_match_params(name):
    target = 5_000_000
    module = registry.resolve("projectors", name)
    config = matching.match_params(module, module.Config(), target, 512, 576)
    assert abs(matching.param_count(module, config, 512, 576) - target) <= 0.02 * target
    changed = {
        f.name
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != getattr(module.Config(), f.name)
    }
    assert changed <= set(module.WIDTHS)


def test_match_params_says_what_cannot_be():
    linear = registry.resolve("projectors", "linear")
    with pytest.raises(ConfigError, match=r"no width of its own.*nearest: 1,180,800"):
        matching.match_params(linear, linear.Config(), 12_000_000, 512, 576)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("linear", {"pooling": "attention"}, "pooling='attention'"),
        ("mlp", {"stack": 0, "hidden_dim": 0}, "stack=0; expected 1 or more; hidden_dim=0"),
        ("mlp", {"activation": "tanh"}, "activation='tanh'"),
        ("conv", {"kernel_width": 0}, "kernel_width=0"),
        ("qformer", {"window": -1}, "window=-1"),
        ("qformer", {"num_heads": 3}, "num_heads=3"),
        ("conformer", {"positions": "relative"}, "positions='relative'"),
    ],
)
def test_impossible_shapes_are_refused(name, values, said):
    module = registry.resolve("projectors", name)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        registry.make_config(module, values)
