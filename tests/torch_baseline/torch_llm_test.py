"""The baseline's generation equals ours: same folder, same prompts as embeddings, same answers."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from tests import tiny_world  # noqa: E402
from third_party.torch_baseline import llm as llm_lib  # noqa: E402
from tiny_align_jax import decode  # noqa: E402
from tiny_align_jax.data import prompts, tokenizer  # noqa: E402
from tiny_align_jax.responder import Llm, Responder  # noqa: E402
from tiny_align_jax.weights import folder as folders  # noqa: E402
from tiny_align_jax.weights import loading  # noqa: E402

pytestmark = pytest.mark.parity
TEXTS = ["the green dog", "we call it bear", "a", "please bring me seven green apples the old dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm")
    tiny_world.make_llm(path, np.random.default_rng(0))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return llm_lib.load(folder, "cpu", torch.float32)


def test_answers_equal_ours(folder, model):
    words = tokenizer.load(folder)
    prompt = prompts.build(prompts.Config("Say: {audio}", (("we call", "we call"),)), words)
    loaded = loading.load_llm(folders.open_folder(folder))
    llm = Llm(decode.LanguageModel(loaded.module, loaded.config), loaded.params)
    settings = decode.Config(max_new_tokens=10, batch_buckets=(4,), tail_buckets=(32,))
    responder = Responder(llm, words, prompt, settings)
    heard = [llm.embed(words.encode(" " + text)) for text in TEXTS]
    ours = [answer.text for answer in responder.answer(heard)]
    suffix = llm.embed(prompt.suffix_ids)
    tails = [torch.tensor(np.concatenate([h, suffix])) for h in heard]
    for batch_size in (1, 3):
        generator = llm_lib.Generator(
            model,
            prompt.stop_ids,
            prompt.prefix_ids.tolist(),
            max_new_tokens=10,
            batch_size=batch_size,
        )
        done = []
        made = generator(tails, done.append)
        assert [words.decode(g.ids).strip() for g in made] == ours
        assert sum(done) == len(TEXTS)
    assert len(set(ours)) > 1, "answers depend on what was heard"


def test_an_answer_ends_at_its_stop_id(model):
    tail = model.get_input_embeddings().weight[5:9]
    free = llm_lib.Generator(model, [model.config.vocab_size - 1], max_new_tokens=10)([tail])[0]
    assert len(free.ids) == 10 and not free.stopped
    stop = free.ids[3]
    first = free.ids.index(stop)
    cut = llm_lib.Generator(model, [stop], max_new_tokens=10, look_every=1)([tail])[0]
    assert cut == llm_lib.Generation(free.ids[:first], True)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"fastest.*reduce-overhead"):
        llm_lib.compiled(lambda x: x, "fastest")
