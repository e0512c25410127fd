"""Published LLM sizes: our parameter count under `eval_shape` against transformers' on the meta device."""

import pathlib
import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from tiny_align_jax import registry  # noqa: E402
from tiny_align_jax.published import LLMS  # noqa: E402
from tiny_align_jax.weights import loading  # noqa: E402

pytestmark = pytest.mark.parity

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "models.md"


# Parameters stated on the model cards, a tied head counted once.
STATED = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "TinyLlama-1.1B": 1_100_048_384,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen3-0.6B": 596_049_920,
    "Gemma-2-2B": 2_614_341_888,
    "Gemma-3-270M": 268_098_176,
    "Gemma-3-1B": 999_885_952,
    "Phi-3.5-mini": 3_821_079_552,
    "StableLM-2-1.6B": 1_644_515_328,
}


def names_in_docs() -> list[str]:
    """First column of the table under the heading `### Published sizes` of the LLM section."""
    section = DOCS.read_text().split("## LLMs")[1].split("\n## ")[0]
    table = section.split("### Published sizes")[1].split("\n### ")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)


def test_every_size_that_the_docs_name_is_covered():
    assert sorted(names_in_docs()) == sorted(LLMS)


@pytest.mark.parametrize("name", sorted(LLMS))
def test_parameter_count_equals_transformers(name):
    hf, stated = LLMS[name], STATED[name]
    module = loading.find_family("llms", hf)
    shapes = loading.llm_shapes(module, module.config_from_hf(hf))
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf)
        )
    assert ours == sum(p.numel() for p in theirs.parameters())
    assert ours == stated


@pytest.mark.parametrize("name", sorted(LLMS))
def test_every_published_tensor_has_a_slot(name):
    """The engine's plan over transformers' tensor names and shapes, without data."""
    hf = LLMS[name]
    module = loading.find_family("llms", hf)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf)
        )
    rules = [(re.compile(rule.source), rule) for rule in module.PARAM_MAP]
    shapes = loading.llm_shapes(module, module.config_from_hf(hf))
    targets = {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(shapes)}
    used = set()
    for tensor, _ in model.named_parameters():
        matches = [rule for pattern, rule in rules if pattern.fullmatch(tensor)]
        assert len(matches) == 1, tensor
        used.add(matches[0].target)
    assert used == targets


def test_every_family_has_a_published_size():
    covered = {loading.find_family("llms", hf).__name__ for hf in LLMS.values()}
    assert covered == {registry.resolve("llms", name).__name__ for name in registry.names("llms")}
