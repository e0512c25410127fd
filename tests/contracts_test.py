"""What every projector and every objective promises; a new file is tested the moment it exists.

Encoders and LLMs have contract tests of their own, because they need tiny checkpoints.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import matching, registry, testing
from tiny_align_jax.train.partition import leaf_names, path_name
from tiny_align_jax.types import Batch, ConfigError, Frozen, Reading
from tiny_align_jax.weights import loading

IN_DIM, OUT_DIM, OUT_RMS = 12, 32, 0.14
# Rows end where a stack, a stride or a window of any projector does not, the third at a single frame.
LENGTHS, FRAMES = (61, 22, 1), 61

# ---- projectors -------------------------------------------------------------------------------

# Keys that make a projector small, wherever its Config has them.
_SMALL = {
    "num_layers": 2,
    "dim": 16,
    "hidden_dim": 16,
    "mlp_dim": 24,
    "num_heads": 2,
    "num_tokens": 5,
    "max_positions": 64,
}
# Values of switches that change the number of tokens or what a token sees.
_SWITCHES = {
    "pooling": ("none", "adaptive", "window", "stride", "attention"),
    "positions": ("none", "sinusoidal", "learned", "rotary"),
    "window": (3,),
    "firing": ("rate",),
}


def _variants():
    """(name, overrides) of the small default of every projector, and of each switch turned."""
    for name in registry.names("projectors"):
        module = registry.resolve("projectors", name)
        keys = {f.name for f in dataclasses.fields(module.Config)}
        small = {k: v for k, v in _SMALL.items() if k in keys}
        yield name, tuple(small.items())
        for key in sorted(keys & set(_SWITCHES)):
            for value in _SWITCHES[key]:
                try:
                    config = registry.make_config(module, small | {key: value})
                except ConfigError:
                    continue  # this projector does not offer it
                if config != registry.make_config(module, small):
                    yield name, (*small.items(), (key, value))


def _label(case):
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1] if k in _SWITCHES)])


PROJECTORS = list(_variants())
projectors = pytest.mark.parametrize("case", PROJECTORS, ids=_label)


@functools.cache
def _projector(case):
    """Module, config, projector and parameters, drawn without compiling `init`."""
    name, values = case
    module = registry.resolve("projectors", name)
    config = registry.make_config(module, dict(values))
    projector = module.Projector(config, OUT_DIM, OUT_RMS)
    return module, config, projector, jax.jit(projector.init)(jax.random.key(0), *_features([8], 8))


def _features(lengths, frames, seed=0):
    features = np.random.default_rng(seed).normal(size=(len(lengths), frames, IN_DIM))
    mask = np.arange(frames)[None] < np.array(lengths)[:, None]
    return features.astype(np.float32), mask


@functools.partial(jax.jit, static_argnums=0)
def _project(projector, variables, features, mask):
    return projector.apply(variables, features, mask)


@projectors
def test_projector_shapes_are_the_published_arithmetic(case):
    module, config, projector, variables = _projector(case)
    audio, valid = _project(projector, variables, *_features(LENGTHS, FRAMES))
    assert audio.dtype == jnp.float32 and valid.dtype == bool
    assert audio.shape == (len(LENGTHS), module.num_audio_tokens(config, FRAMES), OUT_DIM)
    for row, length in zip(np.asarray(valid), LENGTHS, strict=True):
        count = module.num_audio_tokens(config, length)
        assert isinstance(count, int) and row.tolist() == [True] * count + [False] * (
            len(row) - count
        )
    counts = [module.num_audio_tokens(config, n) for n in range(1, 200)]
    assert counts == sorted(counts) and counts[0] >= 1


@projectors
def test_projector_padding_and_company_change_nothing(case):
    module, config, projector, variables = _projector(case)
    features, mask = _features(LENGTHS, FRAMES)
    together, valid = _project(projector, variables, features, mask)
    assert np.isfinite(together).all()
    loud = np.where(mask[..., None], features, 1e3).astype(np.float32)
    spoilt, _ = _project(projector, variables, loud, mask)
    np.testing.assert_allclose(
        np.asarray(spoilt)[np.asarray(valid)], np.asarray(together)[np.asarray(valid)], atol=1e-5
    )
    longer = np.pad(features, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    padded, _ = _project(projector, variables, longer, np.pad(mask, ((0, 0), (0, 3))))
    for row, length in enumerate(LENGTHS):
        count = module.num_audio_tokens(config, length)
        alone, _ = _project(projector, variables, features[row : row + 1], mask[row : row + 1])
        np.testing.assert_allclose(alone[0, :count], together[row, :count], atol=1e-5)
        np.testing.assert_allclose(padded[row, :count], together[row, :count], atol=1e-5)


@projectors
def test_projector_starts_at_the_scale_of_the_table(case):
    _, _, projector, variables = _projector(case)
    audio, valid = _project(projector, variables, *_features(LENGTHS, FRAMES))
    rms = np.sqrt(np.mean(np.square(audio), axis=-1))[np.asarray(valid)]
    np.testing.assert_allclose(rms, OUT_RMS, rtol=0.02)


@projectors
def test_projector_gradients_are_finite_and_reach_every_parameter(case):
    _, _, projector, variables = _projector(case)
    features, mask = _features([*LENGTHS, 0], FRAMES)  # a row without frames, too

    @jax.jit
    def gradients(params, features):
        def total(params, features):
            rngs = {"dropout": jax.random.key(1)}
            audio, valid = projector.apply(
                {"params": params}, features, mask, train=True, rngs=rngs
            )
            return jnp.sum(jnp.sin(9 * audio) * valid[..., None])

        return jax.grad(total, argnums=(0, 1))(params, features)

    to_params, to_features = gradients(variables["params"], features)
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_params):
        assert np.isfinite(leaf).all(), path_name(path)
        # A bias on attention keys moves all scores of a query alike: its true gradient is zero.
        if not re.fullmatch(r".*key/bias", path_name(path)):
            assert np.abs(leaf).max() > 1e-8, f"nothing trains {path_name(path)}"
    assert np.isfinite(to_features).all()
    assert not np.asarray(to_features)[~mask].any()


@projectors
def test_projector_without_jit_and_in_bfloat16(case):
    module, config, projector, variables = _projector(case)
    inputs = _features(LENGTHS[1:], LENGTHS[1])
    expected, valid = _project(projector, variables, *inputs)
    plain, _ = projector.apply(variables, *inputs)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    half = module.Projector(config, OUT_DIM, OUT_RMS, jnp.bfloat16)
    audio, _ = _project(half, variables, inputs[0].astype(np.float16), inputs[1])
    assert audio.dtype == jnp.float32
    error = np.asarray(audio - expected)[np.asarray(valid)]
    assert np.sqrt(np.mean(np.square(error))) < 0.05 * OUT_RMS


@projectors
def test_projector_dropout_needs_its_key_and_only_in_training(case):
    _, _, projector, variables = _projector(case)
    inputs = _features([30], 30)
    train = lambda seed: projector.apply(  # noqa: E731
        variables, *inputs, train=True, rngs={"dropout": jax.random.key(seed)}
    )[0]
    np.testing.assert_array_equal(train(0), train(0))
    if getattr(projector.config, "dropout", 0):
        assert np.abs(train(0) - train(1)).max() > 1e-4
        assert np.abs(train(0) - projector.apply(variables, *inputs)[0]).max() > 1e-4


@pytest.mark.parametrize("name", registry.names("projectors"))
def test_projector_parameters_are_counted_without_being_made(name):
    case = next(case for case in PROJECTORS if case[0] == name)
    module, config, _, variables = _projector(case)
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    assert matching.param_count(module, config, IN_DIM, OUT_DIM) == sum(sizes)
    assert set(getattr(module, "WIDTHS", ())) <= {f.name for f in dataclasses.fields(module.Config)}


@pytest.mark.parametrize("family", ["projectors", "objectives"])
def test_unknown_keys_are_refused(family):
    for name in registry.names(family):
        with pytest.raises(
            ConfigError, match=rf"{name}: unknown config key\(s\) no_such_key; known"
        ):
            registry.make_config(registry.resolve(family, name), {"no_such_key": 1})


# ---- objectives -------------------------------------------------------------------------------

OBJECTIVES = registry.names("objectives")
objectives = pytest.mark.parametrize("name", OBJECTIVES)
NUM_ROWS, NUM_TOKENS, NUM_TARGETS = 11, 14, 5
ROW_TARGETS = ([3, 4, 4, 9], [1], [7, 2, 7, 2, 5])
ROW_TOKENS = (14, 6, 11)


@functools.cache
def _llm():
    """A tiny LLM: (family module, Config) and random parameters."""
    module = registry.resolve("llms", "llama")
    config = module.config_from_hf(testing.LLM_CONFIGS["llama"])
    rng = np.random.default_rng(3)
    shapes = loading.llm_shapes(module, config)
    params = jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)
    return (module, config), params


@functools.cache
def _objective(name):
    """Module, Config in float32, frozen parts that it needs, own parameters and the LLM."""
    module = registry.resolve("objectives", name)
    keys = {f.name for f in dataclasses.fields(module.Config)}
    values = {k: "float32" for k in ("llm_dtype", "logits_dtype") if k in keys}
    config = registry.make_config(module, values)
    (family, llm_config), llm_params = _llm()
    ids = np.arange(20, 20 + NUM_ROWS, dtype=np.int32)
    frozen = Frozen(table_VD=np.asarray(family.embed(llm_config, llm_params, ids)), row_ids_V=ids)
    llm = None
    if "llm" in module.NEEDS:
        llm = (family, llm_config)
        frozen = frozen.replace(
            llm=llm_params,
            prefix_ids_P=np.array([1, 5, 6], np.int32),
            suffix_ids_P=np.array([7, 8], np.int32),
        )
    return module, config, frozen, module.init(config, jax.random.key(0), frozen), llm


def _fixed_length(name):
    return getattr(registry.resolve("objectives", name), "FIXED_LENGTH", False)


def _audio(name, seed=0):
    """Audio tokens and their mask; an objective of fixed length has no invalid ones."""
    audio = np.random.default_rng(seed).normal(size=(3, NUM_TOKENS, OUT_DIM)).astype(np.float32)
    lengths = (NUM_TOKENS,) * 3 if _fixed_length(name) else ROW_TOKENS
    return audio, np.arange(NUM_TOKENS)[None] < np.array(lengths)[:, None]


def _batch(length=NUM_TARGETS, rows=(0, 1, 2), weights=(1, 1, 1)):
    targets = np.zeros((len(rows), length), np.int32)
    for target, row in zip(targets, rows, strict=True):
        target[: len(ROW_TARGETS[row])] = ROW_TARGETS[row]
    return Batch(
        features_BTE=np.zeros((len(rows), 1, 1), np.float32),
        num_frames_B=np.ones(len(rows), np.int32),
        target_ids_BL=targets,
        num_targets_B=np.array([len(ROW_TARGETS[r]) for r in rows], np.int32),
        weight_B=np.array(weights, np.float32)[: len(rows)],
        index_B=np.arange(len(rows), dtype=np.int32),
    )


@functools.partial(jax.jit, static_argnums=0)
def _jitted_loss(name, params, frozen, audio, mask, batch):
    module, config, _, _, llm = _objective(name)
    return module.loss(config, params, audio, mask, batch, frozen, llm=llm)


def _loss(name, audio, mask, batch, params=None):
    _, _, frozen, own, _ = _objective(name)
    return _jitted_loss(name, own if params is None else params, frozen, audio, mask, batch)


@objectives
def test_objective_gives_a_finite_loss_a_row_and_scalars(name):
    loss_B, metrics = _loss(name, *_audio(name), _batch())
    assert loss_B.shape == (3,) and loss_B.dtype == jnp.float32
    assert np.isfinite(loss_B).all() and len(set(np.asarray(loss_B).tolist())) == 3
    assert all(jnp.ndim(value) == 0 and np.isfinite(value) for value in metrics.values())
    assert "loss" not in metrics and "loss_B" not in metrics  # names that the step itself uses


@objectives
def test_objective_declares_what_it_needs_and_how_much(name):
    module, config, _, _, _ = _objective(name)
    assert module.NEEDS and set(module.NEEDS) <= {"embeddings", "llm"}
    for targets, repeats in ((0, 0), (1, 0), (7, 3)):
        needed = module.min_audio_tokens(config, targets, repeats)
        assert isinstance(needed, int) and needed >= 1
    assert hash(config) == hash(dataclasses.replace(config))


@objectives
def test_objective_padding_changes_nothing(name):
    """More room for targets, garbage in invalid tokens, and no other rows: the same losses."""
    audio, mask = _audio(name)
    expected, _ = _loss(name, audio, mask, _batch())
    wider, _ = _loss(name, audio, mask, _batch(NUM_TARGETS + 4))
    np.testing.assert_allclose(wider, expected, rtol=2e-4)
    loud, _ = _loss(name, np.where(mask[..., None], audio, 50.0).astype(np.float32), mask, _batch())
    np.testing.assert_allclose(loud, expected, rtol=2e-4)
    rubbish = _batch()
    invalid = np.arange(NUM_TARGETS)[None] >= rubbish.num_targets_B[:, None]
    rubbish = rubbish.replace(target_ids_BL=np.where(invalid, 10, rubbish.target_ids_BL))
    np.testing.assert_allclose(_loss(name, audio, mask, rubbish)[0], expected, rtol=2e-4)
    if not _fixed_length(name):
        more = np.pad(audio, ((0, 0), (0, 4), (0, 0)), constant_values=3.0)
        longer, _ = _loss(name, more, np.pad(mask, ((0, 0), (0, 4))), _batch())
        np.testing.assert_allclose(longer, expected, rtol=2e-4)
    for row in range(3):
        alone, _ = _loss(name, audio[row : row + 1], mask[row : row + 1], _batch(rows=(row,)))
        np.testing.assert_allclose(alone[0], expected[row], rtol=2e-4)


@objectives
def test_objective_gradients_are_finite_and_keep_to_their_row(name):
    audio, mask = _audio(name)
    _, _, _, params, _ = _objective(name)

    @jax.jit
    def gradients(params, audio):
        return jax.grad(lambda p, a: _loss(name, a, mask, _batch(), p)[0][1], (0, 1))(params, audio)

    to_params, to_audio = gradients(params, audio)
    to_audio = np.asarray(to_audio)
    assert np.isfinite(to_audio).all() and np.abs(to_audio[1]).max() > 0
    assert not to_audio[[0, 2]].any()
    assert not to_audio[~mask].any()
    for leaf_name, leaf in zip(leaf_names(params), jax.tree.leaves(to_params), strict=True):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, f"nothing trains {leaf_name}"


@objectives
def test_objective_without_jit(name):
    module, config, frozen, params, llm = _objective(name)
    audio, mask = _audio(name)
    plain, _ = module.loss(config, params, audio, mask, _batch(), frozen, llm=llm)
    np.testing.assert_allclose(plain, _loss(name, audio, mask, _batch())[0], rtol=1e-4)


@objectives
def test_objective_reads_rows_that_padding_does_not_change(name):
    module, config, frozen, params, _ = _objective(name)
    read = jax.jit(lambda audio, mask: module.read(config, params, audio, mask, frozen))
    audio, mask = _audio(name)
    reading = read(audio, mask)
    assert isinstance(reading, Reading)
    assert reading.rows_BA.shape == reading.keep_BA.shape == (3, NUM_TOKENS)
    assert reading.rows_BA.dtype == jnp.int32 and reading.keep_BA.dtype == bool
    assert reading.soft_BAD.shape == audio.shape and reading.score_B.shape == (3,)
    kept = np.asarray(reading.rows_BA)[np.asarray(reading.keep_BA)]
    assert len(kept) and (kept > 0).all() and (kept < NUM_ROWS).all()
    assert not np.asarray(reading.keep_BA)[~mask].any()
    # A mean of rows lies within them.
    assert (np.abs(reading.soft_BAD).max((0, 1)) <= np.abs(frozen.table_VD).max(0) + 1e-5).all()
    loud = read(np.where(mask[..., None], audio, 50.0).astype(np.float32), mask)
    for before, after in zip(
        (reading.rows_BA, reading.keep_BA, reading.score_B),
        (loud.rows_BA, loud.keep_BA, loud.score_B),
        strict=True,
    ):
        np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n.startswith("embedlink")])
def test_objective_is_low_where_its_reading_is_right(name):
    """Audio that says the transcript reads as the transcript, and costs less than audio that does not."""
    module, config, frozen, params, _ = _objective(name)
    rng = np.random.default_rng(0)
    table = rng.normal(size=frozen.table_VD.shape).astype(np.float32)
    frozen = frozen.replace(table_VD=table)
    blank = np.asarray(params["blank"]) * 4 if "blank" in params else table[0]
    audio = np.tile(blank, (3, NUM_TOKENS, 1)).astype(np.float32)
    for row, target in enumerate(ROW_TARGETS):
        step = 1 if _fixed_length(name) else 2  # a blank between repeats
        for i, target_row in enumerate(target):
            audio[row, step * i] = table[target_row]
    mask = np.ones((3, NUM_TOKENS), bool)
    reading = module.read(config, params, audio, mask, frozen)
    for row, target in enumerate(ROW_TARGETS):
        kept = np.asarray(reading.rows_BA)[row][np.asarray(reading.keep_BA)[row]]
        assert kept.tolist() == list(target)
    right, _ = module.loss(config, params, audio, mask, _batch(), frozen)
    wrong, _ = module.loss(config, params, audio[[1, 2, 0]], mask, _batch(), frozen)
    assert (np.asarray(right) < 0.5 * np.asarray(wrong)).all()
