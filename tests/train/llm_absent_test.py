"""The promise of EmbedLink: a training process holds rows of the LLM's table and nothing else of it."""

import pathlib

import numpy as np
import psutil
import pytest

from tests.train import world
from tiny_align_jax.train import loop, setup
from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights import assets, loading, safetensors

_TABLE = "model.embed_tokens.weight"


def _without_body(root: pathlib.Path, **overrides):
    """A run's config over an LLM folder from which everything but the table was taken."""
    config, cache_dir = world.make(root, train__num_steps=2, **overrides)
    weights = root / "llm" / "model.safetensors"
    table = np.array(safetensors.SafetensorsSource(weights).read(_TABLE))
    safetensors.save_tree(weights, {_TABLE: table})
    return config, cache_dir


def test_a_whole_training_reads_nothing_but_the_table(tmp_path):
    config, cache_dir = _without_body(tmp_path)
    prepared = setup.prepare(config, cache_dir, progress=False)
    assert prepared.run.frozen.llm is None
    result = loop.fit(prepared.run, prepared.state, tmp_path / "run", progress=False)
    assert result.finished and "wer" in result.validation


def test_an_objective_through_the_llm_does_miss_the_body(tmp_path):
    """So that the test above can fail."""
    config, cache_dir = _without_body(
        tmp_path, objective__name="next_token", vocabulary__kind="seen"
    )
    with pytest.raises(WeightsError, match="final_norm"):
        setup.prepare(config, cache_dir, progress=False)


@pytest.mark.weights
def test_rows_of_real_weights_take_memory_of_rows(asset_cache):
    folder = assets.resolve("smollm2-135m-instruct", asset_cache)
    file_bytes = (folder.path / "model.safetensors").stat().st_size
    process = psutil.Process()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = process.memory_info().rss
    rows = loading.embedding_rows(folder, np.arange(0, 49_000, 16))
    peak_kb = next(
        int(line.split()[1])
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    assert rows.nbytes < 8e6
    assert 1024 * peak_kb - before < 0.5 * file_bytes
