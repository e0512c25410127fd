"""The mapping engine: every violation at once, stacking, casts."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tiny_align_jax.types import Rule, WeightsError
from tiny_align_jax.weights.convert import convert

_RNG = np.random.default_rng(0)
_LAYER = r"layers\.(?P<layer>\d+)\."
_MAP = (
    Rule(r"embed\.weight", "embedder/embedding"),
    Rule(_LAYER + r"fc\.weight", "layers/fc/kernel", "linear"),
    Rule(_LAYER + r"fc\.bias", "layers/fc/bias"),
    Rule(r"conv\.weight", "conv/kernel", "conv1d"),
    Rule(r"steps", "steps"),
    Rule(r"rotary\..*", None),
)


class _Source:
    """A TensorSource over a dict that records the order of reads."""

    def __init__(self, arrays):
        self.arrays, self.order = arrays, []

    def names(self):
        return tuple(sorted(self.arrays))

    def shape(self, name):
        return self.arrays[name].shape

    def dtype(self, name):
        return self.arrays[name].dtype

    def read(self, name):
        self.order.append(name)
        return self.arrays[name]

    def rows(self, name, ids):
        return self.arrays[name][ids]


def _arrays():
    arrays = {
        "embed.weight": _RNG.standard_normal((7, 4)),
        "conv.weight": _RNG.standard_normal((5, 4, 3)),
        "steps": np.array([3, 4], np.int64),
        "rotary.inv_freq": np.ones(2),
    }
    for i in range(3):
        arrays[f"layers.{i}.fc.weight"] = _RNG.standard_normal((6, 4))
        arrays[f"layers.{i}.fc.bias"] = _RNG.standard_normal(6)
    return arrays


def _targets():
    shape = jax.ShapeDtypeStruct
    return {
        "embedder": {"embedding": shape((7, 4), jnp.float32)},
        "layers": {
            "fc": {"kernel": shape((3, 4, 6), jnp.float32), "bias": shape((3, 6), jnp.float32)}
        },
        "conv": {"kernel": shape((3, 4, 5), jnp.float32)},
        "steps": shape((2,), jnp.int32),
    }


def test_layers_are_stacked_and_kernels_transposed():
    arrays = _arrays()
    tree = convert(_Source(arrays), _MAP, _targets())
    np.testing.assert_array_equal(
        tree["embedder"]["embedding"], arrays["embed.weight"].astype("f4")
    )
    for i in range(3):
        kernel = arrays[f"layers.{i}.fc.weight"].T.astype("f4")
        np.testing.assert_array_equal(tree["layers"]["fc"]["kernel"][i], kernel)
    conv = np.einsum("oiw->wio", arrays["conv.weight"]).astype("f4")
    np.testing.assert_array_equal(tree["conv"]["kernel"], conv)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, "float32"])
def test_only_floating_leaves_take_the_dtype(dtype):
    tree = convert(_Source(_arrays()), _MAP, _targets(), dtype)
    assert tree["layers"]["fc"]["kernel"].dtype == np.dtype(dtype)
    assert tree["steps"].dtype == np.int32 and tree["steps"].tolist() == [3, 4]


def test_bfloat16_checkpoints_are_read_exactly():
    arrays = {"x": _RNG.standard_normal((4, 3)).astype(ml_dtypes.bfloat16)}
    target = {"x": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
    tree = convert(_Source(arrays), (Rule("x", "x", "linear"),), target)
    np.testing.assert_array_equal(tree["x"], arrays["x"].astype(np.float32).T)


def test_a_function_can_transform():
    rule = Rule("x", "x", lambda x: x.reshape(2, 2, 3).sum(0))
    target = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    x = _RNG.standard_normal((4, 3))
    tree = convert(_Source({"x": x}), (rule,), target)
    np.testing.assert_allclose(tree["x"], x[:2] + x[2:], rtol=1e-6)


def test_every_violation_is_in_one_message():
    arrays = _arrays()
    del arrays["layers.1.fc.bias"], arrays["conv.weight"]
    arrays["layers.2.fc.weight"] = np.ones((9, 4))
    arrays["layers.5.fc.bias"] = np.ones(6)
    arrays["stranger"] = np.ones(1)
    arrays["twice"] = np.ones(1)
    arrays["lost"] = np.ones(1)
    rules = (*_MAP, Rule("twice", None), Rule("twi.e", None), Rule("lost", "no/such"))
    source = _Source(arrays)
    with pytest.raises(WeightsError) as caught:
        convert(source, rules, _targets())
    message = str(caught.value)
    for part in (
        "missing (2): conv/kernel, layers/fc/bias[1]",
        "unexpected (1): stranger",
        "matched by several rules (1): twice",
        "of the wrong shape (1): layers.2.fc.weight (9, 4) -> layers/fc/kernel[2] (4, 6)",
        "of a layer the model does not have (1): layers.5.fc.bias -> layers/fc/bias[5] of (3, 6)",
        "mapped to a parameter the model does not have (1): lost -> no/such",
    ):
        assert part in message, message
    assert not source.order  # refused before anything was read


def test_the_same_fault_in_many_layers_is_one_entry():
    arrays = _arrays()
    for i in range(3):
        arrays[f"layers.{i}.norm.weight"] = np.ones(4)
        del arrays[f"layers.{i}.fc.bias"]
    with pytest.raises(WeightsError) as caught:
        convert(_Source(arrays), _MAP, _targets())
    assert "unexpected (3): layers.{0..2}.norm.weight" in str(caught.value)
    assert "missing (1): layers/fc/bias" in str(caught.value)


def test_two_names_in_one_slot():
    arrays = _arrays() | {"embed_again.weight": np.ones((7, 4))}
    rules = (*_MAP, Rule(r"embed_again\.weight", "embedder/embedding"))
    with pytest.raises(WeightsError, match=r"slot twice .*embed\.weight and embed_again\.weight"):
        convert(_Source(arrays), rules, _targets())


def test_wrong_rank_is_a_wrong_shape():
    arrays = _arrays() | {"conv.weight": np.ones((5, 4))}
    with pytest.raises(WeightsError, match=r"conv\.weight \(5, 4\) -> conv/kernel \(3, 4, 5\)"):
        convert(_Source(arrays), _MAP, _targets())


def test_unknown_transform_lists_the_known_ones():
    with pytest.raises(WeightsError, match=r"'rot13'.*copy, linear, conv1d"):
        convert(_Source({"x": np.ones(1)}), (Rule("x", "x", "rot13"),), {"x": jnp.ones(1)})


def test_the_largest_tensor_is_read_first():
    source = _Source(_arrays())
    convert(source, _MAP, _targets())
    sizes = [source.arrays[name].size for name in source.order]
    assert sizes == sorted(sizes, reverse=True)
    assert "rotary.inv_freq" not in source.order


def test_a_cpu_takes_what_was_read_over_without_a_copy():
    tree = convert(_Source(_arrays()), _MAP, _targets(), jnp.float32)
    for leaf in jax.tree.leaves(tree):
        held = jax.device_put(leaf, jax.local_devices(backend="cpu")[0])
        assert held.unsafe_buffer_pointer() == leaf.ctypes.data


def test_a_target_is_placed_as_soon_as_it_is_filled():
    source, placed = _Source(_arrays()), []

    def place(name, value):
        placed.append(len(source.order))
        return (name, value.shape)

    tree = convert(source, _MAP, _targets(), place=place)
    assert tree["steps"] == ("steps", (2,))
    assert placed == sorted(placed) and placed[0] < placed[-1] == len(source.order)
