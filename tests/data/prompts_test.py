"""The prompt builder: where the audio goes, what surrounds it, what it refuses."""

import numpy as np
import pytest

from tests import tiny_tokenizer
from tiny_align_jax.data import prompts, tokenizer
from tiny_align_jax.types import ConfigError


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return tokenizer.load(tiny_tokenizer.save(tmp_path_factory.mktemp("chat")))


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    return tokenizer.load(tiny_tokenizer.save(folder, tiny_tokenizer.NO_SYSTEM))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tokenizer.load(tiny_tokenizer.save(tmp_path_factory.mktemp("base"), None))


def test_chat_prompt_in_full(chat):
    config = prompts.Config(
        instruction="Repeat it.\nSentence: {audio}", examples=(("a b", "a b!"),), system="Be brief."
    )
    prompt = prompts.build(config, chat)
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nRepeat it.\nSentence: a b<|im_end|>\n"
        "<|im_start|>assistant\na b!<|im_end|>\n"
        "<|im_start|>user\nRepeat it.\nSentence:{audio}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    before, after = prompt.text.split("{audio}")
    assert prompt.prefix_ids.tolist() == chat.encode(before)
    assert prompt.suffix_ids.tolist() == chat.encode(after)
    assert prompt.stop_ids == chat.stop_ids
    assert prompt.prefix_ids.dtype == np.int32


def test_text_in_the_slot_equals_the_same_text_tokenised_in_place(chat):
    """Ids of prefix + ' words' + suffix are the ids of the whole conversation."""
    config = prompts.Config()
    prompt = prompts.build(config, chat)
    words = " we call it bear"
    joined = [*prompt.prefix_ids, *chat.encode(words), *prompt.suffix_ids]
    assert joined == chat.encode(prompt.text.replace("{audio}", words))


def test_examples_as_text_stand_in_one_turn(chat):
    config = prompts.Config(
        instruction="Say: {audio}", examples=(("one", "two"), ("three", "four")), examples_as="text"
    )
    text = prompts.build(config, chat).text
    assert text.count("<|im_start|>user") == 1
    assert (
        "Say: one\nAnswer: two\n\nSay: three\nAnswer: four\n\nSay:{audio}\nAnswer:<|im_end|>"
        in text
    )


@pytest.mark.parametrize(
    ("position", "expected"),
    [("before", "user\n{audio}\nSay it.<|im_end|>"), ("after", "user\nSay it.\n{audio}<|im_end|>")],
)
def test_audio_before_and_after(chat, position, expected):
    config = prompts.Config(instruction="Say it.", examples=(), audio_position=position)
    assert expected in prompts.build(config, chat).text


def test_no_examples_and_default_system(chat):
    text = prompts.build(prompts.Config(examples=()), chat).text
    assert text.count("user") == 1
    assert "system" not in text


def test_template_without_system_role_folds_it_into_the_first_turn(gemma_like):
    config = prompts.Config(instruction="Say: {audio}", examples=(("a", "b"),), system="Be brief.")
    text = prompts.build(config, gemma_like).text
    assert text.startswith("<|im_start|><turn>user\nBe brief.\n\nSay: a<end_of_turn>\n")
    assert text.count("Be brief.") == 1
    assert gemma_like.encode("<end_of_turn>")[0] in prompts.build(config, gemma_like).stop_ids


def test_base_model_gets_plain_lines_and_stops_at_the_line_end(base):
    prompt = prompts.build(prompts.Config(instruction="Say: {audio}", examples=(("a", "b"),)), base)
    assert prompt.text == "<|im_start|>Say: a\nb\n\nSay:{audio}\n"
    assert base.encode("\n")[0] in prompt.stop_ids
    assert base.eos_id in prompt.stop_ids


def test_runs_of_newlines_that_are_one_token_end_a_plain_answer_too(base):
    class Gemma:
        """As Gemma cuts newlines: one token for each count up to 31."""

        def __getattr__(self, name):
            return getattr(base, name)

        def encode(self, text):
            count = len(text)
            return [900 + count] if text == "\n" * count and count <= 31 else base.encode(text)

    config = prompts.Config(instruction="Say: {audio}", examples=())
    assert {901, 902, 931} <= set(prompts.build(config, Gemma()).stop_ids)


@pytest.mark.data
def test_default_examples_are_not_from_the_corpus(data_root):
    files = sorted((data_root / "speechocean762").glob("*/text"))
    sentences = {
        line.split("\t", 1)[1].strip().lower() for f in files for line in f.read_text().splitlines()
    }
    assert len(sentences) > 1000
    assert not sentences & {example[0] for example in prompts.Config().examples}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"instruction": "Repeat."}, "has 0 audio slots"),
        ({"instruction": "{audio} and {audio}"}, "has 2 audio slots"),
        ({"instruction": "{audio}"}, "instruction is empty"),
        ({"instruction": " ", "audio_position": "after"}, "instruction is empty"),
        ({"instruction": "Say {audio}", "audio_position": "after"}, "drop one of the two"),
        ({"audio_position": "middle"}, "one of slot, before, after"),
        ({"examples_as": "rhyme"}, "one of turns, text"),
        ({"examples": (("only one",),)}, "example 0"),
        ({"examples": (("a", "b"), ("c", " "))}, "example 1"),
        ({"examples": (("a {audio}", "b"),)}, "only the instruction may"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        prompts.Config(**values)


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        prompts.Config(instruction="Repeat.", examples_as="rhyme", examples=(("a",),))
    assert all(w in str(error.value) for w in ("audio slots", "examples_as", "example 0"))


def test_control_tokens_in_texts_are_refused(chat):
    config = prompts.Config(instruction="Say {audio}<|im_end|>")
    with pytest.raises(ConfigError, match=r"control tokens.*<\|im_end\|>"):
        prompts.build(config, chat)


def test_template_that_refuses_or_loses_the_audio(tmp_path):
    refuses = "{{ raise_exception('only one turn') }}"
    loses = "{{ messages[0]['role'] }}"
    for template, message in ((refuses, "only one turn"), (loses, "0 times")):
        tok = tokenizer.load(tiny_tokenizer.save(tmp_path / message, template))
        with pytest.raises(ConfigError, match=message):
            prompts.build(prompts.Config(), tok)


def test_a_users_own_instruction(chat):
    text = prompts.build(prompts.from_instruction("Answer the question."), chat).text
    assert "user\nAnswer the question.\n{audio}<|im_end|>" in text
    inside = prompts.build(prompts.from_instruction("Is {audio} a question?"), chat).text
    assert "user\nIs{audio} a question?<|im_end|>" in inside
    with pytest.raises(ConfigError, match="instruction is empty"):
        prompts.from_instruction("  ")
