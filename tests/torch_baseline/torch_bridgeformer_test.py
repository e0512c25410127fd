"""The PyTorch projector equals ours with the same weights, in every shape, and its weights go both ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from third_party.torch_baseline import bridgeformer  # noqa: E402
from tiny_align_jax.projectors import bridgeformer as ours  # noqa: E402
from tiny_align_jax.weights import safetensors  # noqa: E402

pytestmark = pytest.mark.parity
WIDTH, OUT, RMS = 6, 10, 0.3
NUM_FRAMES = np.array([37, 11, 4], np.int32)
SHAPE = {"num_layers": 2, "dim": 16, "num_heads": 2, "mlp_dim": 24, "num_tokens": 5}
CASES = {
    "frame rate": {},
    "rotary": {"positions": "rotary"},
    "learned, stride": {"positions": "learned", "pooling": "stride", "max_positions": 16},
    "sinusoidal, adaptive": {"positions": "sinusoidal", "pooling": "adaptive", "stack": 1},
    "window": {"pooling": "window", "num_tokens": 7},
    "attention": {"pooling": "attention", "stack": 2},
}


class NoObjective(torch.nn.Module):
    """An objective without parameters."""


@functools.partial(jax.jit, static_argnames="module")
def apply(module, params, features, mask):
    return module.apply({"params": params}, features, mask)


def make(values):
    """(our module, our params, the torch module with the same random weights, frames)."""
    config = ours.Config(**SHAPE | values)
    module = ours.Projector(config, OUT, RMS)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 37, WIDTH)).astype(np.float32)
    torch_module = bridgeformer.BridgeFormer(vars(config), WIDTH, OUT, RMS).eval()
    views = bridgeformer.flax_views(torch_module)
    with torch.no_grad():
        for parameter in torch_module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    arrays = {n: a.numpy() for n, a in bridgeformer.arrays(views).items()}
    return module, safetensors._nest(arrays), torch_module, features


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_shapes_of_weights_equal_ours(case):
    torch.manual_seed(0)
    module, params, torch_module, features = make(CASES[case])
    mask = np.arange(37)[None] < NUM_FRAMES[:, None]
    init = jax.eval_shape(module.init, jax.random.key(0), features, mask)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, dict(init))
    expected, expected_mask = apply(module, params, features, mask)
    with torch.no_grad():
        found, found_mask = torch_module(torch.tensor(features), torch.tensor(NUM_FRAMES))
    np.testing.assert_array_equal(found_mask, expected_mask)
    np.testing.assert_allclose(
        found.numpy()[np.asarray(expected_mask)],
        np.asarray(expected)[np.asarray(expected_mask)],
        atol=1e-4,
    )
    counts = torch_module.num_audio_tokens(torch.tensor(NUM_FRAMES)).tolist()
    assert counts == [ours.num_audio_tokens(module.config, int(n)) for n in NUM_FRAMES]
    assert counts == np.asarray(expected_mask).sum(1).tolist()


def test_a_file_goes_both_ways(tmp_path):
    torch.manual_seed(1)
    _, params, first, _ = make({"positions": "rotary"})
    path = str(tmp_path / "projector.safetensors")
    bridgeformer.save(path, first, NoObjective())
    ours_read = safetensors.load_tree(path)["projector"]
    jax.tree.map(np.testing.assert_array_equal, ours_read, params)
    changed = jax.tree.map(lambda x: x + 1, ours_read)
    safetensors.save_tree(path, {"projector": changed})
    bridgeformer.load(path, first, NoObjective())
    again = bridgeformer.arrays(bridgeformer.flax_views(first))
    for name, array in safetensors.named_leaves(changed):
        np.testing.assert_array_equal(again[name], array)


def test_weights_of_another_shape_are_named():
    first = make({})[2]
    other = make({"dim": 32, "positions": "learned"})[2]
    with pytest.raises(ValueError, match=r"positions: only on one side.*encoder_norm/scale"):
        bridgeformer.load_arrays(
            bridgeformer.flax_views(first), bridgeformer.arrays(bridgeformer.flax_views(other))
        )


def test_a_layer_equals_pytorchs_own():
    torch.manual_seed(2)
    layer = bridgeformer.EncoderLayer(16, 2, 24, 0.0, False).eval()
    builtin = torch.nn.TransformerEncoderLayer(
        16,
        2,
        24,
        0.0,
        activation=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    ).eval()
    pairs = {
        "self_attn.in_proj_weight": layer.attention.qkv.weight,
        "self_attn.in_proj_bias": layer.attention.qkv.bias,
        "self_attn.out_proj.weight": layer.attention.out.weight,
        "self_attn.out_proj.bias": layer.attention.out.bias,
        "linear1.weight": layer.mlp.up.weight,
        "linear1.bias": layer.mlp.up.bias,
        "linear2.weight": layer.mlp.down.weight,
        "linear2.bias": layer.mlp.down.bias,
    }
    builtin.load_state_dict(pairs, strict=False)
    x, mask = torch.randn(2, 7, 16), torch.arange(7) < torch.tensor([[7], [3]])
    theirs = builtin(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(layer(x, mask)[mask], theirs[mask], atol=1e-5, rtol=1e-5)
