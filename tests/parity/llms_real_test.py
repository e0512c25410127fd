"""Real weights: greedy continuations through the KV cache equal transformers', and make sense."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from tiny_align_jax.data import tokenizer  # noqa: E402
from tiny_align_jax.weights import assets, loading  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.weights]

NEW = 12
# Asset -> prompts and a word that the continuation must hold. Gemma is a base model: no chat.
PROMPTS = {
    "smollm2-135m-instruct": {
        "<|im_start|>user\nRepeat after me: seven green apples fell from the tree<|im_end|>\n"
        "<|im_start|>assistant\n": "seven green apples",
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n": (
            "Paris"
        ),
    },
    "gemma-3-270m": {
        "<bos>The capital of France is Paris. The capital of Italy is": "Rome",
        "<bos>Monday, Tuesday, Wednesday, Thursday,": "Friday, Saturday, Sunday",
        "<bos>Q: What colour is the sky?\nA:": "blue",
    },
}


def open_asset(name: str) -> assets.ModelFolder:
    cache = os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align")
    path = pathlib.Path(cache).expanduser() / name
    if not path.is_dir():
        pytest.skip(f"not fetched: python -m experiments.fetch_assets --assets={name}")
    return assets.open_folder(path)


def continue_greedily(loaded: loading.Loaded, rows: list[list[int]]) -> list[list[int]]:
    """NEW tokens after each prompt, left-padded into one batch, one cached step a token."""
    module, config, params = loaded.module, loaded.config, loaded.params
    length = max(map(len, rows))
    ids = np.array([[0] * (length - len(row)) + row for row in rows])
    mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    llm, last = module.LLM(config), jnp.array([-1] * len(rows))

    @jax.jit
    def step(params, ids, positions, mask, cache):
        x = module.embed(config, params, ids)
        logits, cache = llm.apply({"params": params}, x, positions, mask, cache, last + x.shape[1])
        return jnp.argmax(logits, axis=-1)[:, None], cache

    cache = module.init_cache(config, len(rows), length + NEW, jnp.float32)
    params = jax.tree.map(jnp.asarray, params)
    token, cache = step(params, ids, positions, mask, cache)
    tokens = [token]
    for i in range(1, NEW):
        now = mask.sum(axis=1)[:, None] + i - 1
        token, cache = step(params, token, now, np.ones((len(rows), 1), bool), cache)
        tokens.append(token)
    return np.concatenate(tokens, axis=1).tolist()


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_greedy_continuations_equal_transformers_and_make_sense(name):
    folder = open_asset(name)
    words = tokenizer.load(folder.path)
    rows = [words.encode(text) for text in PROMPTS[name]]
    ours = continue_greedily(loading.load_llm(folder), rows)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    for row, got, wanted_word in zip(rows, ours, PROMPTS[name].values(), strict=True):
        with torch.no_grad():
            out = model.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False)
        theirs = out[0, len(row) :].tolist()
        assert got[: len(theirs)] == theirs  # theirs stops at the end of the answer
        assert wanted_word in words.decode(theirs)
