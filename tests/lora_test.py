"""Adapters of the LLM's attention: in training, merged, exported and used."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_world
from tests.objectives_zoo_test import F32, _audio, _batch, llm  # noqa: F401  a fixture
from tiny_align_jax import lora, registry, testing
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.objectives import distill, next_token
from tiny_align_jax.train import checkpoint
from tiny_align_jax.types import CheckpointError, ConfigError
from tiny_align_jax.weights import loading, safetensors


def _random(adapters, seed=0):
    """Adapters that change something."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), adapters)


@pytest.mark.parametrize("family", ["llama", "phi", "gemma", "stablelm"])
def test_attached_is_merged_and_zero_is_nothing(family):
    module = registry.resolve("llms", family)
    config = module.config_from_hf(testing.LLM_CONFIGS[family])
    rng = np.random.default_rng(1)
    shapes = loading.llm_shapes(module, config)
    params = jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)
    fresh = lora.init(jax.random.key(0), params, rank=3)
    fused = "qkv" in shapes["layers"]["attention"]
    assert len(jax.tree.leaves(fresh)) == (4 if fused else 8)
    used = _random(fresh)
    sequence = rng.normal(size=(1, 5, config.dim)).astype(np.float32)

    @jax.jit
    def logits(params):
        inputs = (sequence, jnp.arange(5)[None], jnp.ones((1, 5), bool))
        return module.LLM(config).apply({"params": params}, *inputs)[0]

    plain = logits(params)
    np.testing.assert_allclose(logits(lora.attach(params, fresh)), plain, atol=1e-5)
    merged = logits(lora.merge(params, used))
    np.testing.assert_allclose(logits(lora.attach(params, used)), merged, atol=2e-3)
    assert np.abs(merged - plain).max() > 0.1


def test_only_adapters_train_and_the_teacher_has_none(llm):  # noqa: F811
    parts, frozen = llm
    audio, mask = _audio(frozen)
    batch = _batch([[3, 7, 1], [5]])
    config = next_token.Config(**F32, lora_rank=2)
    params = next_token.init(config, jax.random.key(0), frozen)
    assert next_token.init(config, jax.random.key(0), dataclasses.replace(frozen, llm=None)) == {}

    @jax.jit
    def step(params):
        loss = lambda p: next_token.loss(config, p, audio, mask, batch, frozen, llm=parts)[0].sum()  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        return value, grads, jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)

    first, grads, params = step(params)
    for leaf in jax.tree.leaves(grads["lora"]):
        assert np.isfinite(leaf).all()
    last, grads, _ = step(params)
    assert last < first - 0.01
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))  # 'down', too, by now

    student = distill.Config(**F32, lora_rank=2)
    used = {"lora": _random(params["lora"])}
    run = jax.jit(lambda p: distill.loss(student, p, audio, mask, batch, frozen, llm=parts))
    (with_lora, metrics), (without, same) = run(used), run({})
    assert np.abs(with_lora - without).max() > 1e-3
    assert metrics["teacher_accuracy"] == same["teacher_accuracy"]


def test_exported_beside_the_projector_and_used_by_the_aligner(tmp_path):
    world = tiny_world.make(tmp_path, "next_token")
    plain = Aligner.load(world.workdir, world.cache_dir, need_llm=True)
    assert plain.llm is not None
    adapters = _random(lora.init(jax.random.key(0), plain.llm.params, 2))
    params = {**plain.params, "objective": {"lora": adapters}}
    checkpoint.export(
        world.workdir, params, json.loads((world.workdir / "projector.json").read_text())
    )
    adapted = Aligner.load(world.workdir, world.cache_dir, need_llm=True)
    assert adapted.llm is not None and Aligner.load(world.workdir, world.cache_dir, need_llm=False)
    jax.tree.map(
        np.testing.assert_array_equal, adapted.llm.params, lora.merge(plain.llm.params, adapters)
    )
    safetensors.save_tree(world.workdir / checkpoint.LORA_WEIGHTS, {"layers": adapters})
    with pytest.raises(CheckpointError, match="other layers"):
        Aligner.load(world.workdir, world.cache_dir, need_llm=True)


def test_bad_ranks_and_models_are_refused():
    with pytest.raises(ConfigError, match="lora_rank=-1"):
        next_token.Config(lora_rank=-1)
    with pytest.raises(ConfigError, match="no attention matrix"):
        lora.init(jax.random.key(0), {"mlp": {"weight": np.zeros((2, 2))}}, 1)
