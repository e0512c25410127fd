"""What the LLM says of a text, against a plain forward pass over the whole of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import beam, decode_loop, language, ngram
from tiny_align_jax.data import tokenizer, vocabulary
from tiny_align_jax.responder import Llm
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import assets, loading

CONTEXT = ["we call it bear", "the green dog"]
TEXTS = ["the old dog", "", "apples", "please bring me seven green apples near the door"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm") / "llm"
    tiny_world.make_llm(folder, np.random.default_rng(0))
    loaded = loading.load_llm(assets.resolve(str(folder), folder.parent), jnp.float32)
    model = decode_loop.LanguageModel(loaded.module, loaded.config, jnp.float32)
    return Llm(model, loaded.params), tokenizer.load(folder)


@pytest.fixture(scope="module")
def judge(parts):
    return language.LlmJudge(*parts, CONTEXT, batch_sizes=(4,))


def _plainly(parts, text, context):
    """Log-probability of the tokens of text and line end, by one forward pass without a cache."""
    llm, words = parts
    before = [words.bos_id, *words.encode("".join(f"- {s}\n" for s in context) + "-")]
    ids = [*(words.encode(" " + text) if text else []), *words.encode("\n")]
    whole = np.array([*before, *ids])[None]
    mask = np.ones(whole.shape, bool)
    embedded = llm.model.embed(llm.params, whole)
    logits, _ = llm.model.apply(llm.params, embedded, np.arange(whole.shape[1])[None], mask)
    log_probs = jax.nn.log_softmax(logits[0])
    return sum(float(log_probs[len(before) - 1 + i, t]) for i, t in enumerate(ids))


def test_log_prob_is_that_of_the_line_in_its_context(parts, judge):
    expected = [_plainly(parts, text, CONTEXT) for text in TEXTS]
    np.testing.assert_allclose(judge.log_probs(TEXTS), expected, atol=2e-3)
    alone = language.LlmJudge(*parts, batch_sizes=(4,)).log_probs(TEXTS)
    np.testing.assert_allclose(alone[0], _plainly(parts, TEXTS[0], []), atol=2e-3)
    assert abs(alone[0] - expected[0]) > 0.1


def test_neighbours_in_a_batch_change_nothing(judge):
    together = judge.log_probs(TEXTS * 3)
    alone = np.array([judge.log_probs([t])[0] for t in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, 3), atol=1e-3)


def test_rows_to_come_and_the_text_that_they_make(parts, judge):
    _, words = parts
    rows = vocabulary.build(
        "seen", tiny_world.SENTENCES, words.token_strings(), words.eos_id, words
    )
    score = judge.score(rows)
    text = rows.encode("the green dog").tolist()
    prefixes = [tuple(text[:i]) for i in range(len(text) + 1)]
    said = score(prefixes)
    for before, after, row in zip(said, said[1:], text, strict=False):
        assert after.log_prob == pytest.approx(before.log_prob + before.next_V[row], abs=2e-3)
    whole = judge.log_probs(["the green dog"])[0]
    assert said[-1].log_prob + said[-1].end == pytest.approx(whole, abs=2e-3)


def test_rows_that_the_tokenizer_would_cut_otherwise_are_judged_as_text(parts, judge):
    _, words = parts
    strings = words.token_strings()
    rows = vocabulary.build("pieces", tiny_world.SENTENCES, strings, words.eos_id, words, 1)
    at = {s: i for i, s in enumerate(rows.strings)}
    spelled = (at[" d"], at["o"], at["g"]) if " d" in at else (at[" "], at["d"], at["o"], at["g"])
    (said,) = judge.score(rows)([spelled])
    assert rows.decode(spelled) == "dog"
    assert said.log_prob + said.end == pytest.approx(judge.log_probs(["dog"])[0], abs=2e-3)


def test_control_tokens_in_the_context_are_refused(parts):
    with pytest.raises(ConfigError, match="im_end"):
        language.LlmJudge(*parts, ["stop <|im_end|> here"])


def test_ngrams_and_mixtures():
    model = ngram.build([[1, 2, 3], [1, 3]], num_rows=5)
    prefixes = [(), (1,), (1, 2, 3)]
    said = language.ngram_score(model)(prefixes)
    assert said[2].log_prob + said[2].end == pytest.approx(model.log_prob([1, 2, 3]))
    np.testing.assert_array_equal(said[1].next_V, model.next_log_probs((1,)))

    def flat(asked):
        return [beam.Language(-1.0, np.full(5, -2.0), -3.0) for _ in asked]

    mixed = language.mix([(0.5, language.ngram_score(model)), (2.0, flat), (0.0, flat)])
    assert mixed
    both = mixed(prefixes)
    assert both[2].log_prob == pytest.approx(0.5 * said[2].log_prob - 2.0)
    assert both[1].end == pytest.approx(0.5 * said[1].end - 6.0)
    np.testing.assert_allclose(both[0].next_V, 0.5 * said[0].next_V - 4.0)
    assert language.mix([(0.0, flat)]) is None
