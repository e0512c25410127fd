"""One config an encoder family and an LLM family: each builds whole under `eval_shape`, widths and all.

The sizes that the configs name are looked up among the published config.json files of the tests beside
this one; nothing is downloaded.
"""

import importlib
import json
import re

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("torch")

from tests.parity import published_encoders_test, published_llms_test
from tiny_align_jax import published, registry
from tiny_align_jax.weights import loading

pytestmark = pytest.mark.parity
TUNED = re.compile(r"(-Instruct|-it|-instruct|-chat|-Chat)(-v[\d.]+)?$")


def _cases(folder):
    return [
        (family, arg)
        for family in registry.names(folder)
        for arg in importlib.import_module(f"configs.{folder}.{family}").SIZES
    ]


def _published(asset, table):
    """The entry that an asset or hub id names, whatever it was tuned for."""
    wanted = TUNED.sub("", asset.split("/")[-1]).lower().replace("_", ".")
    found = {name for name in table if name.lower() == wanted}
    found |= {name for name in table if name.lower() == f"{wanted}-v0.3"}
    assert len(found) == 1, f"{asset}: {sorted(found)} of the published sizes"
    return table[found.pop()]


def _config(folder, family, arg):
    module = importlib.import_module(f"configs.{folder}.{family}")
    return json.loads(module.get_config(arg).to_json_best_effort())


def _project(config, in_dim, out_dim, num_frames):
    module, module_config = registry.from_section("projectors", config["projector"])
    projector = module.Projector(module_config, out_dim, 1.0)
    shapes = (jnp.zeros((1, num_frames, in_dim)), jnp.ones((1, num_frames), bool))
    (audio_BAD, _), _ = jax.eval_shape(projector.init_with_output, jax.random.key(0), *shapes)
    return audio_BAD


@pytest.mark.parametrize(("family", "arg"), _cases("encoders"))
def test_encoder_config_builds(family, arg):
    config = _config("encoders", family, arg)
    hf = _published(config["encoder"]["asset"], published.ENCODERS)
    module, params = published_encoders_test.shapes_of(hf)
    assert module is registry.resolve("encoders", family)
    full = published_encoders_test.transformers.AutoConfig.for_model(**hf).to_dict()
    encoder_config = module.config_from_hf(full)
    samples = round(config["encoder"]["window_s"] * 16_000)
    inputs = jax.eval_shape(lambda w: jnp.zeros((1, len(w))), jnp.zeros(samples))
    layers = tuple(config["encoder"]["layers"])
    frames = jax.eval_shape(
        lambda p, x: module.Encoder(encoder_config, jnp.float32).apply(
            {"params": p}, x, jnp.array([samples]), layers
        ),
        params,
        inputs,
    )
    num_frames = module.num_frames(encoder_config, samples)
    assert frames[-1].shape[0] == 1 and frames[-1].shape[1] >= num_frames
    audio_BAD = _project(config, frames[-1].shape[-1] * len(layers), 576, num_frames)
    assert audio_BAD.shape[-1] == 576


@pytest.mark.parametrize(("family", "arg"), _cases("llms"))
def test_llm_config_builds(family, arg):
    config = _config("llms", family, arg)
    hf = _published(config["llm"]["asset"], published.LLMS)
    module = loading.find_family("llms", hf)
    assert module is registry.resolve("llms", family)
    full = published_llms_test.transformers.AutoConfig.for_model(**hf).to_dict()
    llm_config = module.config_from_hf(full)
    audio_BAD = _project(config, 512, llm_config.dim, 200)
    llm = module.LLM(llm_config, jnp.float32)
    inputs = (
        audio_BAD,
        jnp.zeros(audio_BAD.shape[:2], jnp.int32),
        jnp.ones(audio_BAD.shape[:2], bool),
    )
    (logits, _), _ = jax.eval_shape(llm.init_with_output, jax.random.key(0), *inputs)
    assert logits.shape == (*audio_BAD.shape[:2], llm_config.vocab_size)
