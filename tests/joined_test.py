"""Which matrices are joined for decoding; that logits stay is tested with the families."""

import jax.numpy as jnp
import numpy as np

from tiny_align_jax import joined


def _tree(up_dtype=np.float32):
    weight = lambda rows, dtype=np.float32: {"weight": np.full((2, rows, 4), rows, dtype)}  # noqa: E731
    return {
        "layers": {
            "mlp": {"gate": weight(3), "up": weight(5, up_dtype), "down": weight(4)},
            "norm": {"scale": np.ones((2, 4), np.float32)},
        }
    }


def test_gate_stands_before_up_and_the_rest_stays():
    layers = joined.join(_tree())["layers"]
    assert set(layers["mlp"]) == {"gate_up", "down"}
    rows = np.asarray(layers["mlp"]["gate_up"]["weight"])[0, :, 0]
    np.testing.assert_array_equal(rows, [3, 3, 3, 5, 5, 5, 5, 5])
    np.testing.assert_array_equal(layers["norm"]["scale"], np.ones((2, 4)))


def test_what_joining_takes_beside_the_result_is_a_layer_of_a_part():
    assert joined.part_bytes(_tree()) == 5 * 4 * 4  # of 'up'; 'down' is joined with nothing
    assert joined.part_bytes(_tree(jnp.bfloat16)) == 0


def test_biases_are_joined_too():
    tree = _tree()
    tree["layers"]["mlp"]["gate"]["bias"] = np.zeros((2, 3), np.float32)
    tree["layers"]["mlp"]["up"]["bias"] = np.ones((2, 5), np.float32)
    bias = np.asarray(joined.join(tree)["layers"]["mlp"]["gate_up"]["bias"])
    np.testing.assert_array_equal(bias, [[0, 0, 0, 1, 1, 1, 1, 1]] * 2)


def test_a_bias_of_one_part_keeps_them_apart():
    tree = _tree()
    tree["layers"]["mlp"]["up"]["bias"] = np.ones((2, 5), np.float32)
    assert set(joined.join(tree)["layers"]["mlp"]) == {"gate", "up", "down"}


def test_other_dtypes_and_layouts_stay_apart():
    assert "up" in joined.join(_tree(jnp.bfloat16))["layers"]["mlp"]
    tree = _tree()
    tree["layers"]["mlp"]["up"]["weight"] = {"codes": np.ones((2, 5, 4), np.int8)}
    assert "up" in joined.join(tree)["layers"]["mlp"]


def test_a_cpu_keeps_them_apart():
    assert "up" in joined.for_decoding(_tree())["layers"]["mlp"]
