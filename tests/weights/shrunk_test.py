"""LLMs with fewer table rows and layers: the same logits of what stays, the same texts, the same blocks."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_tokenizer
from tests.weights import writers
from tiny_align_jax import decode_loop, shrink
from tiny_align_jax.data import prompts, tokenizer
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.types import ConfigError, DataError
from tiny_align_jax.weights import loading, shrunk, shrunk_tokenizer
from tiny_align_jax.weights.folder import open_folder

TEXTS = ["The old dog", "we call it bear"]
HF = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
PROMPT = prompts.Config(instruction="Say: {audio}", examples=())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A GGUF model of two layers with the tiny tokenizer, beside the floats that it was made from."""
    path = tiny_tokenizer.save(tmp_path_factory.mktemp("llm") / "llm")
    size = len(tokenizer.load(path))
    arrays = writers.llama_arrays(np.random.default_rng(0), size)
    tensors = writers.as_gguf_tensors(arrays, writers.Kind.Q8_0)
    writers.write_gguf(path / "model.gguf", "llama", writers.LLAMA_METADATA, tensors, {})
    writers.write_safetensors(path / "model.safetensors", arrays)
    hf = HF | {"vocab_size": size, "bos_token_id": 1, "eos_token_id": [0, 2]}
    (path / "config.json").write_text(json.dumps(hf))
    return open_folder(path)


@pytest.fixture(scope="module")
def choice(whole):
    return shrink.choose(shrink.Config(vocabulary="train"), whole, TEXTS, PROMPT)


@pytest.fixture(scope="module")
def small(whole, choice, tmp_path_factory):
    return shrunk.resolve(whole, choice, tmp_path_factory.mktemp("cache"))


def logits_of(folder, ids, held=None):
    loaded = loading.load_llm(folder, jnp.float32, held or quantize.Config())
    model = decode_loop.LanguageModel(loaded.module, loaded.config)
    return np.asarray(_logits(model, loaded.params, jnp.asarray([ids])))[0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, ids):
    positions = jnp.arange(ids.shape[1])[None]
    return model.apply(params, model.embed(params, ids), positions, ids >= 0)[0]


@pytest.mark.parametrize("weights", ["float", "gguf"])
def test_logits_of_rows_that_stay_are_those_of_the_whole_model(whole, small, choice, weights):
    old, new = tokenizer.load(whole.path), tokenizer.load(small.path)
    assert len(new) == len(choice.ids) < len(old)
    text, held = "<|im_start|>the old dog", quantize.Config(weights)
    ids, renumbered = old.encode(text), new.encode(text)
    assert [choice.ids[i] for i in renumbered] == ids
    expected = logits_of(whole, ids, held)[:, np.array(choice.ids)]
    np.testing.assert_allclose(logits_of(small, renumbered, held), expected, atol=1e-5)


def test_texts_it_was_made_for_are_cut_alike_and_others_into_smaller_pieces(whole, small, choice):
    old, new = tokenizer.load(whole.path), tokenizer.load(small.path)
    for text in [*TEXTS, " the old dog", *(prompts.build(PROMPT, old).text.split("{audio}"))]:
        assert [choice.ids[i] for i in new.encode(text)] == old.encode(text)
    other = "seven green apples \u00e9\u4e2d"
    assert len(new.encode(other)) > len(old.encode(other))
    assert new.decode(new.encode(other)) == other
    assert [new.control_text(i) for i in new.stop_ids] == [
        old.control_text(i) for i in old.stop_ids
    ]
    assert small.config["eos_token_id"] == [choice.ids.index(0), choice.ids.index(2)]


def test_it_is_made_once_and_says_what_it_is_of(whole, small, choice):
    assert shrunk.resolve(whole, choice, small.path.parent).path == small.path
    again = shrunk.Choice.from_json(json.loads(json.dumps({"ids": choice.ids, "layers": None})))
    assert shrunk.resolve(whole, again, small.path.parent).fingerprint == small.fingerprint
    assert small.fingerprint != whole.fingerprint and whole.fingerprint in small.origin
    assert shrunk.resolve(whole, shrunk.Choice(), small.path.parent) is whole


def test_dropped_layers_leave_the_others_as_they_are(whole, tmp_path):
    last = shrunk.resolve(whole, shrunk.Choice(layers=(1,)), tmp_path)
    for held in (quantize.Config(), quantize.Config("gguf")):
        ours = loading.load_llm(last, jnp.float32, held).params
        theirs = loading.load_llm(whole, jnp.float32, held).params
        expected = theirs | {"layers": jax.tree.map(lambda x: x[1:], theirs["layers"])}
        jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert last.config["num_hidden_layers"] == 1


def test_layers_that_change_their_input_least_go(whole, tmp_path):
    # A layer whose outputs are zero hands its input on.
    path = tmp_path / "idle"
    shutil.copytree(whole.path, path)
    (path / "model.gguf").unlink()
    arrays = writers.llama_arrays(np.random.default_rng(0), whole.config["vocab_size"])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        arrays[f"model.layers.0.{name}.weight"] *= 0
    writers.write_safetensors(path / "model.safetensors", arrays)
    idle = open_folder(path)
    words = tokenizer.load(path)
    scores = shrink.layer_scores(idle, TEXTS, PROMPT, words)
    assert scores[0] == pytest.approx(0, abs=1e-5) and scores[1] > 0.01
    chosen = shrink.choose(shrink.Config(drop_layers=1), idle, TEXTS, PROMPT)
    assert chosen == shrunk.Choice(ids=None, layers=(1,))
    text = words.encode("the old dog")
    short = logits_of(shrunk.resolve(idle, chosen, tmp_path), text)
    np.testing.assert_allclose(short, logits_of(idle, text), atol=1e-5)
    with pytest.raises(ConfigError, match="drop_layers=2; the LLM has 2"):
        shrink.choose(shrink.Config(drop_layers=2), idle, TEXTS, PROMPT)


def test_unigram_tokenizers_and_templates_are_renumbered(tmp_path):
    model = {"type": "Unigram", "unk_id": 1, "vocab": [["<s>", 0], ["<unk>", 0], ["a", -2], ["ab", -1], ["b", -2]]}  # fmt: skip
    special = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    files = {
        "tokenizer.json": {
            "model": model,
            "added_tokens": [{"id": 0, "content": "<s>"}],
            "post_processor": {"type": "TemplateProcessing", "special_tokens": special},
        },
        "tokenizer_config.json": {"added_tokens_decoder": {"0": {"content": "<s>"}}},
    }
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    ids = shrunk_tokenizer.closure(tmp_path, {1})
    assert ids == (0, 1, 2, 4)
    shrunk_tokenizer.rewrite(tmp_path, ids)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [token for token, _ in made["model"]["vocab"]] == ["<s>", "<unk>", "a", "b"]
    assert made["model"]["unk_id"] == 1
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece"}}))
    with pytest.raises(ConfigError, match="WordPiece; only BPE and Unigram"):
        shrunk_tokenizer.closure(tmp_path, {1})


def test_wrong_choices_are_refused(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"layers to keep.*expected some of 0\.\.1"):
        shrunk.resolve(whole, shrunk.Choice(layers=(0, 5)), tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.txt.*'train' or a text file"):
        shrink.choose(shrink.Config(vocabulary="nowhere.txt"), whole, TEXTS, PROMPT)
