"""What a user's copy may differ in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.types import ConfigError

PARAMS = {
    "projector": {
        "layers": {
            "query": {"kernel": jnp.ones((3, 4, 2, 5)), "bias": jnp.ones((3, 2, 5))},
            "out": {"kernel": jnp.ones((3, 2, 5, 4))},
        },
        "up": {"kernel": jnp.ones((6, 4))},
        "norm": {"scale": jnp.ones(4)},
    },
    "objective": {"blank": jnp.ones(4)},
}


def _filled(method):
    delta = delta_lib.init(method, PARAMS, 7, jax.random.key(0))
    return {k: v + 0.5 if k[0] != "a" else v for k, v in delta.items()}


def test_a_new_delta_changes_nothing():
    method = delta_lib.Method((".*",), ("projector/.*kernel",), 2, "affine")
    delta = delta_lib.init(method, PARAMS, 7, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, delta_lib.apply(PARAMS, delta), PARAMS)
    frames = jnp.arange(14.0).reshape(1, 2, 7)
    np.testing.assert_array_equal(delta_lib.change_frames(delta, frames), frames)


def test_only_what_is_named_changes():
    changed = delta_lib.apply(
        PARAMS, _filled(delta_lib.Method(offsets=(".*scale", "objective/.*")))
    )
    np.testing.assert_array_equal(changed["projector"]["norm"]["scale"], 1.5)
    np.testing.assert_array_equal(changed["objective"]["blank"], 1.5)
    np.testing.assert_array_equal(changed["projector"]["up"]["kernel"], 1.0)


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("query", 4, 10), ("out", 10, 4)], ids=["query", "out"]
)
def test_a_low_rank_product_is_one_a_layer(name, rows, columns):
    method = delta_lib.Method(low_rank=(f"projector/layers/{name}/kernel",), rank=2)
    delta = _filled(method)
    leaf = f"projector/layers/{name}/kernel"
    assert delta[f"a:{leaf}"].shape == (3, rows, 2) and delta[f"b:{leaf}"].shape == (3, 2, columns)
    change = delta_lib.apply(PARAMS, delta)["projector"]["layers"][name]["kernel"] - 1
    for layer in range(3):
        matrix = np.asarray(change[layer]).reshape(rows, columns)
        assert np.linalg.matrix_rank(matrix, tol=1e-5) == 1  # b is constant here
    assert len({float(np.abs(c).sum()) for c in change}) == 3


def test_frames_are_scaled_and_shifted():
    frames = jnp.ones((1, 2, 7))
    np.testing.assert_allclose(
        delta_lib.change_frames(_filled(delta_lib.Method(frames="affine")), frames), 2.0
    )
    np.testing.assert_allclose(
        delta_lib.change_frames(_filled(delta_lib.Method(frames="shift")), frames), 1.5
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"offsets": ("encoder/.*",)}, "match no parameter"),
        ({"low_rank": (".*scale",)}, "is no matrix"),
        ({}, "nothing to adapt"),
    ],
)
def test_what_cannot_be_adapted_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        delta_lib.init(delta_lib.Method(**values), PARAMS, 7, jax.random.key(0))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="frames='all'"):
        delta_lib.Method(frames="all")
    with pytest.raises(ConfigError, match="rank=0"):
        delta_lib.Method(rank=0)
    assert delta_lib.Method(low_rank=("encoder/.*",)).needs_encoder
    assert not delta_lib.Method().trains


def test_an_objective_without_parameters_adds_none():
    bare = {"projector": PARAMS["projector"], "objective": {}}
    method = delta_lib.Method(offsets=("projector/.*", "objective/.*"))
    found = delta_lib.init(method, bare, 7, jax.random.key(0))
    assert found and all(name.startswith("offset:projector/") for name in found)
    with pytest.raises(ConfigError, match="match no parameter"):
        delta_lib.init(delta_lib.Method(offsets=("encoder/.*",)), bare, 7, jax.random.key(0))


def test_the_mean_of_copies_is_the_mean_of_what_they_change():
    method = delta_lib.Method((".*bias", "objective/.*"), ("projector/.*kernel",), 2, "affine")
    keys = jax.random.split(jax.random.key(1), 3)
    copies = [delta_lib.init(method, PARAMS, 7, key) for key in keys]
    copies = [
        {k: v + jax.random.normal(key, v.shape) for k, v in c.items()}
        for c, key in zip(copies, keys, strict=True)
    ]
    changed = [delta_lib.apply(PARAMS, copy) for copy in copies]
    mean = delta_lib.mean(copies)
    jax.tree.map(
        lambda got, *each: np.testing.assert_allclose(got, sum(each) / 3, atol=1e-4),
        delta_lib.apply(PARAMS, mean),
        *changed,
    )
    np.testing.assert_allclose(
        mean["frames:scale"], sum(c["frames:scale"] for c in copies) / 3, atol=1e-6
    )
    assert mean["a:projector/up/kernel"].shape == (6, 6)
    stacked = delta_lib.mean([{k: v[None] for k, v in c.items()} for c in copies])
    jax.tree.map(lambda got, one: np.testing.assert_array_equal(got[0], one), stacked, mean)
