"""Published encoder sizes: our parameter count under `eval_shape`, transformers' on the meta device.

The counts stand in docs/models.md.
"""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from tiny_align_jax import registry  # noqa: E402
from tiny_align_jax.published import ENCODERS  # noqa: E402
from tiny_align_jax.weights import loading  # noqa: E402

pytestmark = pytest.mark.parity

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "models.md"


# Tensors of the reference that no frame passes through (Conformer never applies its convolution).
UNUSED = {
    "whisper": r"decoder\..*",
    "wav2vec2-conformer": r"masked_spec_embed|encoder\.(pos_conv_embed|embed_positions)\..*|"
    r".*\.num_batches_tracked",
}
UNUSED_DEFAULT = "masked_spec_embed"


def reference_sizes(hf: dict[str, Any]) -> dict[str, int]:
    """Elements of every tensor that the reference's encoder uses, built without memory."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**hf))
    unused = re.compile(UNUSED.get(hf["model_type"], UNUSED_DEFAULT))
    tensors = model.state_dict().items()
    return {name: tensor.numel() for name, tensor in tensors if not unused.fullmatch(name)}


def shapes_of(hf: dict[str, Any]):
    """Family module and parameter shapes through the whole of transformers' config."""
    module = loading.find_family("encoders", hf)
    full = transformers.AutoConfig.for_model(**hf).to_dict()
    return module, loading.encoder_shapes(module, module.config_from_hf(full))


def counts_in_docs() -> dict[str, int]:
    """Name and parameters in the table `### Published sizes` of the encoder section."""
    section = DOCS.read_text().split("## Encoders")[1].split("\n## ")[0]
    table = section.split("### Published sizes")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\| ([\d,]+) \|", table, flags=re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in rows}


def test_every_size_that_the_docs_name_is_covered():
    assert sorted(counts_in_docs()) == sorted(ENCODERS)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_parameter_count_equals_transformers(name):
    _, shapes = shapes_of(ENCODERS[name])
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert ours == sum(reference_sizes(ENCODERS[name]).values())
    assert ours == counts_in_docs()[name]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_published_tensor_has_a_slot(name):
    module, shapes = shapes_of(ENCODERS[name])
    rules = [(re.compile(rule.source), rule) for rule in module.PARAM_MAP]
    leaves = {"/".join(k.key for k in path): s for path, s in jax.tree.leaves_with_path(shapes)}
    filled = dict.fromkeys(leaves, 0)
    for tensor, size in reference_sizes(ENCODERS[name]).items():
        matches = [rule for pattern, rule in rules if pattern.fullmatch(tensor)]
        assert len(matches) == 1, tensor
        filled[matches[0].target] += size
    assert filled == {name: int(np.prod(leaf.shape)) for name, leaf in leaves.items()}


def test_every_family_has_a_published_size():
    covered = {loading.find_family("encoders", hf).__name__ for hf in ENCODERS.values()}
    families = registry.names("encoders")
    assert covered == {registry.resolve("encoders", name).__name__ for name in families}
