"""The real SmolLM2-135M-Instruct through our prompts and our decoder."""

import numpy as np
import pytest

from tiny_align_jax import decode
from tiny_align_jax.data import prompts, tokenizer
from tiny_align_jax.metrics import wer
from tiny_align_jax.responder import Llm, Responder
from tiny_align_jax.weights import assets, loading

pytestmark = pytest.mark.weights

ASSET = "smollm2-135m-instruct"
SENTENCES = [
    "my brother keeps two brown horses behind the barn",
    "she forgot her umbrella on the bus",
    "eight small boats crossed the lake at noon",
    "it is too cold to swim today",
]


@pytest.fixture(scope="module")
def llm(asset_cache):
    if not (asset_cache / ASSET).is_dir():
        pytest.skip(f"no {ASSET} in {asset_cache}: run python -m experiments.fetch_assets")
    folder = assets.resolve(ASSET, asset_cache)
    loaded = loading.load_llm(folder)
    model = decode.LanguageModel(loaded.module, loaded.config)
    return Llm(model, loaded.params), tokenizer.load(folder.path)


def _responder(llm, prompt, **settings):
    model, words = llm
    shape = {"max_new_tokens": 40, "batch_buckets": (1, 4), "tail_buckets": (32,)}
    return Responder(model, words, prompts.build(prompt, words), decode.Config(**shape | settings))


def _heard(llm, text):
    model, words = llm
    return model.embed(words.encode(" " + text))


def test_repeats_sentences_from_their_embeddings(llm):
    answers = _responder(llm, prompts.Config()).answer([_heard(llm, s) for s in SENTENCES])
    assert all(a.stopped for a in answers)
    scores = wer.compute(wer.Config("lower"), SENTENCES, [a.text for a in answers])
    assert scores["wer"] <= 0.1


def test_answers_a_question_and_stops(llm):
    responder = _responder(llm, prompts.from_instruction("Answer the question."))
    heard = _heard(llm, "what is the capital of france")
    (answer,) = responder.answer([heard])
    assert "Paris" in answer.text
    assert answer.stopped
    assert "".join(responder.stream(heard)).strip() == answer.text


def test_sampled_answers_differ_and_stop(llm):
    heard = [_heard(llm, "tell me about the sea")] * 4
    prompt = prompts.from_instruction("Answer in one short sentence.")
    texts = {a.text for a in _responder(llm, prompt, temperature=0.8, top_p=0.9).answer(heard)}
    assert len(texts) > 1
    assert all(text.isprintable() for text in texts)


def test_stop_ids_and_special_tokens(llm):
    _, words = llm
    assert words.stop_ids == (2,)
    assert words.control_text(2) == "<|im_end|>"
    assert words.token_strings()[words.encode(" the")[0]] == " the"


def test_prompt_is_the_chat_template_around_the_audio(llm):
    _, words = llm
    prompt = prompts.build(prompts.Config(), words)
    joined = np.concatenate([prompt.prefix_ids, words.encode(" it is cold"), prompt.suffix_ids])
    assert joined.tolist() == words.encode(prompt.text.replace("{audio}", " it is cold"))
