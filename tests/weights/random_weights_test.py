"""Random checkpoints are what the loaders of every family read, names and shapes alike."""

import jax
import numpy as np
import pytest

from tiny_align_jax import published, testing
from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights import loading, random_weights
from tiny_align_jax.weights.random_weights import RandomSource

CASES = [("llms", name) for name in testing.LLM_CONFIGS] + [
    ("encoders", name) for name in testing.ENCODER_CONFIGS
]
TINY = {"llms": testing.LLM_CONFIGS, "encoders": testing.ENCODER_CONFIGS}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_family_loads_a_random_folder(kind, name, tmp_path):
    folder = random_weights.write_folder(tmp_path / "model", kind, TINY[kind][name])
    load = loading.load_llm if kind == "llms" else loading.load_encoder
    leaves = jax.tree.leaves(load(folder).params)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(0.01 < leaf.std() < 0.03 for leaf in leaves)


def test_a_published_size_is_described_without_memory():
    source = RandomSource("llms", published.LLMS["Llama-3.2-3B"], np.float16)
    total = sum(int(np.prod(source.shape(name))) for name in source.names())
    assert total == 3_212_749_824
    assert source.shape("model.layers.27.mlp.down_proj.weight") == (3072, 8192)


def test_a_source_reads_as_it_writes():
    source = RandomSource("llms", testing.LLM_CONFIGS["llama"])
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(source.rows(name, [3, 1]), source.read(name)[[3, 1]])
    assert (source.read("model.norm.weight") == 1).all()


def test_unknown_models_are_refused():
    with pytest.raises(WeightsError, match="nonsense"):
        RandomSource("llms", {"model_type": "nonsense"})
