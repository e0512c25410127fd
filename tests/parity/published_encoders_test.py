"""Published encoder sizes: our parameter count under `eval_shape`, transformers' on the meta device.

The dictionaries are what the published config.json files set differently from transformers'
defaults; the counts stand in docs/models.md.
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
from tiny_align_jax.weights import loading  # noqa: E402

pytestmark = pytest.mark.parity

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "models.md"


def whisper(dim: int, layers: int, heads: int, decoder_layers: int, mels: int = 80, vocab=51_865):
    return {
        "model_type": "whisper",
        "d_model": dim,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * dim,
        "decoder_layers": decoder_layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": 4 * dim,
        "num_mel_bins": mels,
        "vocab_size": vocab,
    }


def waveform(model_type: str, dim: int = 768, layers: int = 12, heads: int = 12, **rest: Any):
    sizes = {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
    }
    return {"model_type": model_type} | sizes | rest


LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
LARGE = LAYER_NORM | {"dim": 1024, "layers": 24, "heads": 16}
XLARGE = LAYER_NORM | {"dim": 1280, "layers": 48, "heads": 16}
CONFORMER = {
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "hidden_act": "swish",
    "dim": 1024,
    "layers": 24,
    "heads": 16,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "whisper-tiny": whisper(384, 4, 6, 4),
    "whisper-tiny.en": whisper(384, 4, 6, 4, vocab=51_864),
    "whisper-base": whisper(512, 6, 8, 6),
    "whisper-base.en": whisper(512, 6, 8, 6, vocab=51_864),
    "whisper-small": whisper(768, 12, 12, 12),
    "whisper-small.en": whisper(768, 12, 12, 12, vocab=51_864),
    "whisper-medium": whisper(1024, 24, 16, 24),
    "whisper-medium.en": whisper(1024, 24, 16, 24, vocab=51_864),
    "whisper-large": whisper(1280, 32, 20, 32),
    "whisper-large-v2": whisper(1280, 32, 20, 32),
    "whisper-large-v3": whisper(1280, 32, 20, 32, mels=128, vocab=51_866),
    "whisper-large-v3-turbo": whisper(1280, 32, 20, 4, mels=128, vocab=51_866),
    "wav2vec2-base": waveform("wav2vec2"),
    "wav2vec2-large": waveform("wav2vec2", 1024, 24, 16),
    "wav2vec2-large-lv60": waveform("wav2vec2", **LARGE, conv_bias=True),
    "wav2vec2-xls-r-1b": waveform("wav2vec2", **XLARGE, conv_bias=True),
    "wav2vec2-conformer-rel-pos-large": waveform(
        "wav2vec2-conformer", **CONFORMER, position_embeddings_type="relative"
    ),
    "wav2vec2-conformer-rope-large": waveform(
        "wav2vec2-conformer", **CONFORMER, position_embeddings_type="rotary"
    ),
    "hubert-base-ls960": waveform("hubert"),
    "hubert-large-ll60k": waveform("hubert", **LARGE, conv_bias=True),
    "hubert-xlarge-ll60k": waveform("hubert", **XLARGE, conv_bias=True),
    "wavlm-base": waveform("wavlm"),
    "wavlm-base-plus": waveform("wavlm"),
    "wavlm-large": waveform("wavlm", **LARGE),
}
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
    assert sorted(counts_in_docs()) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_count_equals_transformers(name):
    _, shapes = shapes_of(PUBLISHED[name])
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert ours == sum(reference_sizes(PUBLISHED[name]).values())
    assert ours == counts_in_docs()[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_tensor_has_a_slot(name):
    module, shapes = shapes_of(PUBLISHED[name])
    rules = [(re.compile(rule.source), rule) for rule in module.PARAM_MAP]
    leaves = {"/".join(k.key for k in path): s for path, s in jax.tree.leaves_with_path(shapes)}
    filled = dict.fromkeys(leaves, 0)
    for tensor, size in reference_sizes(PUBLISHED[name]).items():
        matches = [rule for pattern, rule in rules if pattern.fullmatch(tensor)]
        assert len(matches) == 1, tensor
        filled[matches[0].target] += size
    assert filled == {name: int(np.prod(leaf.shape)) for name, leaf in leaves.items()}


def test_every_family_has_a_published_size():
    covered = {loading.find_family("encoders", hf).__name__ for hf in PUBLISHED.values()}
    families = registry.names("encoders")
    assert covered == {registry.resolve("encoders", name).__name__ for name in families}
