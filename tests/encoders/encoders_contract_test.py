"""What every encoder plug-in promises; a new one is tested the moment it is in testing.py's table."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import registry, testing
from tiny_align_jax.types import AudioError, ConfigError

WINDOW = 6400
SIZES = (6400, 4321)
CASES = tuple(testing.ENCODER_CONFIGS)
FAMILIES = tuple(name for name in CASES if "/" not in name)  # for tests that compile much
# Whisper's padding is silence it attends to, so its frames do depend on what follows.
MASKED_CASES = tuple(name for name in CASES if not name.startswith("whisper"))


@functools.cache
def setup(name):
    """Module, config, parameters and a padded batch of one case."""
    module = registry.resolve("encoders", name.split("/")[0])
    config = module.config_from_hf(testing.ENCODER_CONFIGS[name])
    rng = np.random.default_rng(0)
    waveforms = [rng.standard_normal(n).astype(np.float32) for n in SIZES]
    inputs = np.stack([module.preprocess(config, w, WINDOW) for w in waveforms])
    init = module.Encoder(config).init
    shapes = jax.eval_shape(init, jax.random.key(0), inputs[:1], np.array(SIZES[:1]))["params"]

    # Drawn here: compiling `init` takes longer than all the rest.
    def draw(path, leaf):
        values = rng.normal(0.1, 0.3, leaf.shape).astype(np.float32)
        return np.abs(values) if path[-1].key == "var" else values

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return module, config, params, inputs, np.array(SIZES)


@functools.partial(jax.jit, static_argnames=("encoder", "layers"))
def encode(encoder, params, inputs, sizes, layers=None):
    return encoder.apply({"params": params}, inputs, sizes, layers)


def run(name, dtype=jnp.float32, layers=None, rows=(0, 1)):
    module, config, params, inputs, sizes = setup(name)
    rows = list(rows)
    return encode(module.Encoder(config, dtype), params, inputs[rows], sizes[rows], layers)


def test_every_family_has_a_tiny_size():
    assert {name.split("/")[0] for name in CASES} == set(registry.names("encoders"))


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_the_published_arithmetic(name):
    module, config, _, _, _ = setup(name)
    states = run(name)
    assert len(states) == config.num_layers + 1
    shape = (len(SIZES), module.num_frames(config, WINDOW), config.dim)
    assert {s.shape for s in states} == {shape}
    assert isinstance(module.num_frames(config, WINDOW), int)
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize("name", CASES)
def test_num_frames_never_falls_and_starts_at_zero(name):
    module, config, _, _, _ = setup(name)
    frames = [module.num_frames(config, n) for n in range(0, 1000)]
    assert frames[0] == 0
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_see_each_other(name):
    """Batch == single, with the single utterance twice so that nothing is compiled anew."""
    module, config, _, _, _ = setup(name)
    batch = run(name)
    for row, size in enumerate(SIZES):
        frames = module.num_frames(config, size)
        alone = run(name, rows=(row, row))
        for h, expected in zip(batch, alone, strict=True):
            np.testing.assert_allclose(h[row, :frames], expected[0, :frames], atol=2e-5)


@pytest.mark.parametrize("name", MASKED_CASES)
def test_padding_changes_nothing(name):
    """Loud garbage after the utterance leaves every valid frame as it was."""
    module, config, params, inputs, sizes = setup(name)
    garbage = inputs.copy()
    garbage[1, SIZES[1] :] = 100.0
    frames = module.num_frames(config, SIZES[1])
    clean = encode(module.Encoder(config), params, inputs, sizes)
    dirty = encode(module.Encoder(config), params, garbage, sizes)
    for h, expected in zip(dirty, clean, strict=True):
        np.testing.assert_allclose(h[1, :frames], expected[1, :frames], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_rows_without_samples_stay_finite(name):
    module, config, params, inputs, _ = setup(name)
    states = encode(module.Encoder(config), params, inputs * 0, np.zeros(2, np.int32))
    assert all(np.isfinite(s).all() for s in states)


@pytest.mark.parametrize("name", FAMILIES)
def test_jit_equals_no_jit(name):
    module, config, params, inputs, sizes = setup(name)
    plain = module.Encoder(config).apply({"params": params}, inputs, sizes)
    for h, expected in zip(run(name), plain, strict=True):
        np.testing.assert_allclose(h, expected, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_chosen_layers_equal_all_layers(name):
    states = run(name)
    last = len(states) - 1
    for layers in ((last - 1, 0, last, 1), (-3, -3)):
        chosen = run(name, layers=layers)
        assert len(chosen) == len(layers)
        for index, h in zip(layers, chosen, strict=True):
            np.testing.assert_allclose(h, states[index], atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_layers_above_the_highest_wanted_are_not_run(name):
    module, config, params, inputs, sizes = setup(name)
    encoder = module.Encoder(config)

    def scan_lengths(layers):
        jaxpr = jax.make_jaxpr(lambda p: encoder.apply({"params": p}, inputs, sizes, layers))
        return {eqn.params["length"] for eqn in _layer_scans(jaxpr(params).jaxpr, inputs)}

    assert scan_lengths(None) == {config.num_layers}
    assert scan_lengths((1,)) == {1}


def _layer_scans(jaxpr, inputs):
    """Scans over layers: long inputs attend in a scan over the batch's rows on a CPU."""
    scans = _equations(jaxpr, "scan")
    return [eqn for eqn in scans if eqn.params["length"] != len(inputs)]


def _equations(jaxpr, name):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, name)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_only_wanted_states_are_kept(name):
    """The buffer carried through the layers holds exactly the wanted states in between."""
    module, config, params, inputs, sizes = setup(name)
    encoder = module.Encoder(config)
    frames = module.num_frames(config, WINDOW)

    def kept(layers):
        jaxpr = jax.make_jaxpr(lambda p: encoder.apply({"params": p}, inputs, sizes, layers))
        (scan,) = _layer_scans(jaxpr(params).jaxpr, inputs)
        shapes = [v.aval.shape for v in scan.outvars]
        return sum(s[0] for s in shapes if s[1:] == (len(SIZES), frames, config.dim))

    assert kept((-1,)) == 0
    assert kept((2, -1)) == 1
    assert kept(None) == config.num_layers - 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layers", [(9,), (0, -8, 5), ()])
def test_missing_layers_are_named(name, layers):
    with pytest.raises(ConfigError, match=r"0 .* to 3") as error:
        run(name, layers=layers)
    for index in layers:
        assert index == 0 or str(index) in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_outputs(name):
    assert {s.dtype for s in run(name, dtype=jnp.bfloat16)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_finite(name):
    """For adaptation of the encoder, and because a masked softmax or norm can hide a NaN here."""
    module, config, params, inputs, sizes = setup(name)
    sizes = np.array([SIZES[0], 0])

    def loss(params):
        last = encode(module.Encoder(config), params, inputs, sizes, (-1,))[0]
        return jnp.sum(jnp.square(last[0]))

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 0


@pytest.mark.parametrize("name", CASES)
def test_preprocess_refuses_what_does_not_fit(name):
    module, config, _, _, _ = setup(name)
    for waveform in (np.zeros(WINDOW + 1), np.zeros(0), np.zeros((2, 100))):
        with pytest.raises(AudioError, match=str(WINDOW)):
            module.preprocess(config, waveform, WINDOW)


@pytest.mark.parametrize("name", CASES)
def test_preprocess_leaves_its_input_alone(name):
    module, config, _, _, _ = setup(name)
    waveform = np.linspace(-1, 1, 5000, dtype=np.float32)
    before = waveform.copy()
    out = module.preprocess(config, waveform, WINDOW)
    np.testing.assert_array_equal(waveform, before)
    assert out.dtype == np.float32 and out.shape == (WINDOW,)
    assert not out[5000:].any()


@pytest.mark.parametrize("name", CASES)
def test_every_unhandled_attribute_is_listed(name):
    module, _, _, _, _ = setup(name)
    hf = testing.ENCODER_CONFIGS[name] | {"sandwich_norm": True, "router_dim": 7}
    missing = next(key for key in hf if key.endswith("layers"))
    del hf[missing]
    with pytest.raises(ConfigError) as error:
        module.config_from_hf(hf)
    for key in ("sandwich_norm", "router_dim", missing):
        assert key in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_other_model_types_are_refused(name):
    module, _, _, _, _ = setup(name)
    with pytest.raises(ConfigError, match="speech_to_text"):
        module.config_from_hf(testing.ENCODER_CONFIGS[name] | {"model_type": "speech_to_text"})
