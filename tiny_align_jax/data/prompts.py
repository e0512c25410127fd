"""The one prompt builder: training, evaluation and the command line all get their prompts here.

A prompt that differs between training and inference by as little as a space is a known cause of
gibberish. Here the tokenizer's chat template is applied to the whole conversation with a mark where
the audio goes, the text is split at the mark, and the two sides are tokenised once.

Source: instruction injection of Tiny-Align (arXiv 2411.13766). The paper's wording is not known to us;
the wording and the worked examples here are ours, chosen on training sentences (docs/prompts.md).
"""

import dataclasses

import numpy as np

from tiny_align_jax.data.tokenizer import Message, Tokenizer
from tiny_align_jax.types import ConfigError

SLOT = "{audio}"
AUDIO_POSITIONS = ("slot", "before", "after")
EXAMPLE_FORMS = ("turns", "text")
# A private-use character cannot occur in an instruction and survives templates that trim.
_MARK = "\ue000audio\ue000"
_LONGEST_RUN = 32  # of newlines that a tokenizer may hold as one token

# Broken sentences, numbers, a doubled word: a small LLM shown sound sentences only "mends" what it
# should repeat, and answers what it cannot read with an example.
VERBATIM_EXAMPLES = tuple(
    (text, text)
    for text in (
        "three blue the walking under seven",
        "mary's cat drink of milk slow",
        "nine zero four one",
        "the the river go to them hill",
        "and who is that",
        "he was running very quick before of the rain stop",
    )
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What the LLM is told about the audio.

    Attributes:
        instruction: text of the user's turn. With `audio_position` 'slot' it holds '{audio}' once,
            where the projected audio goes.
        examples: worked (input, output) pairs shown before the audio, as part of the instruction.
        examples_as: 'turns' (each pair is a finished exchange of the chat) or 'text' (all pairs
            stand in the same user turn as the audio).
        audio_position: 'slot', or 'before' / 'after' an instruction without a slot.
        system: system turn; None keeps the template's own default.
    """

    instruction: str = "Copy the text word for word.\nText: {audio}"
    examples: tuple[tuple[str, str], ...] = VERBATIM_EXAMPLES
    examples_as: str = "turns"
    audio_position: str = "slot"
    system: str | None = None

    def __post_init__(self):
        problems = _problems(self)
        if problems:
            raise ConfigError("prompt: " + "; ".join(problems))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as ids around the audio.

    Attributes:
        prefix_ids: int32[P], everything before the audio.
        suffix_ids: int32[P2], everything after it, up to where the answer begins.
        stop_ids: ids that end the answer.
        text: the whole prompt, '{audio}' where the audio goes.
    """

    prefix_ids: np.ndarray
    suffix_ids: np.ndarray
    stop_ids: tuple[int, ...]
    text: str


def from_instruction(instruction: str) -> Config:
    """A prompt from one line of a user: '{audio}' in it, or else the audio after it; no examples.

    Raises:
        ConfigError: an empty instruction, or more than one slot.
    """
    position = "slot" if SLOT in instruction else "after"
    return Config(instruction=instruction, examples=(), audio_position=position)


def build(config: Config, tokenizer: Tokenizer) -> Prompt:
    """The prompt of `config` for this LLM.

    Spaces right before the audio are dropped: the audio stands for text whose first word carries its
    own leading space, as in `data.vocabulary`.

    Raises:
        ConfigError: the instruction or an example contains a control token, or the chat template
            refuses the turns or loses the audio.
    """
    _refuse_control_tokens(config, tokenizer)
    messages = _messages(config)
    if tokenizer.has_chat_template:
        text, stop_ids = tokenizer.render(messages), tokenizer.stop_ids
    else:
        text, stop_ids = _plain(messages, tokenizer), _plain_stop_ids(tokenizer)
    if text.count(_MARK) != 1:
        raise ConfigError(
            f"the chat template shows the audio {text.count(_MARK)} times, expected once"
        )
    before, after = text.split(_MARK)
    before = before.rstrip(" ")
    return Prompt(
        prefix_ids=np.array(tokenizer.encode(before), np.int32),
        suffix_ids=np.array(tokenizer.encode(after), np.int32),
        stop_ids=stop_ids,
        text=before + SLOT + after,
    )


def _problems(config: Config) -> list[str]:
    """All that is wrong with a config, in words."""
    problems = []
    slots = config.instruction.count(SLOT)
    if config.audio_position not in AUDIO_POSITIONS:
        problems.append(
            f"audio_position={config.audio_position!r}; expected one of {', '.join(AUDIO_POSITIONS)}"
        )
    elif config.audio_position == "slot" and slots != 1:
        problems.append(
            f"instruction {config.instruction!r} has {slots} audio slots, expected exactly one; write "
            f"{SLOT} where the audio goes, or set audio_position to 'before' or 'after'"
        )
    elif config.audio_position != "slot" and slots:
        problems.append(
            f"instruction has a {SLOT} slot but audio_position={config.audio_position!r}; "
            "drop one of the two"
        )
    if not config.instruction.replace(SLOT, "").strip():
        problems.append("instruction is empty; say what to do with the audio")
    if config.examples_as not in EXAMPLE_FORMS:
        problems.append(
            f"examples_as={config.examples_as!r}; expected one of {', '.join(EXAMPLE_FORMS)}"
        )
    for i, example in enumerate(config.examples):
        if len(example) != 2 or not all(isinstance(t, str) and t.strip() for t in example):
            problems.append(f"example {i} is {example!r}; expected two texts (input, output)")
        elif SLOT in "".join(example):
            problems.append(f"example {i} holds {SLOT}; only the instruction may")
    return problems


def _refuse_control_tokens(config: Config, tokenizer: Tokenizer) -> None:
    texts = [
        config.instruction,
        config.system or "",
        *(t for pair in config.examples for t in pair),
    ]
    found = sorted({s for s in tokenizer.special_strings if s and any(s in t for t in texts)})
    if found:
        raise ConfigError(
            f"prompt texts contain control tokens of the LLM ({', '.join(found)}), which would break "
            "the chat's turns; leave them out, the chat template adds them"
        )


def _messages(config: Config) -> list[Message]:
    messages: list[Message] = []
    if config.system is not None:
        messages.append({"role": "system", "content": config.system})
    asked = _with_slot(config)
    if config.examples_as == "turns":
        for source, target in config.examples:
            messages.append({"role": "user", "content": asked.replace(SLOT, source)})
            messages.append({"role": "assistant", "content": target})
        shown = asked
    else:
        solved = [asked.replace(SLOT, s) + f"\nAnswer: {t}" for s, t in config.examples]
        shown = "\n\n".join([*solved, asked + "\nAnswer:" if solved else asked])
    messages.append({"role": "user", "content": shown.replace(SLOT, _MARK)})
    return messages


def _with_slot(config: Config) -> str:
    if config.audio_position == "before":
        return f"{SLOT}\n{config.instruction}"
    if config.audio_position == "after":
        return f"{config.instruction}\n{SLOT}"
    return config.instruction


def _plain(messages: list[Message], tokenizer: Tokenizer) -> str:
    """Turns for a base model without a chat template: blank lines between them, one line an answer."""
    begin = tokenizer.control_text(tokenizer.bos_id) if tokenizer.bos_id is not None else ""
    lines = []
    for message in messages:
        answer = message["role"] == "assistant"
        lines.append(f"{message['content']}\n\n" if answer else f"{message['content']}\n")
    return begin + "".join(lines)


def _plain_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Also the end of the line: without a chat template, nothing else ends an answer.

    Several newlines in a row are often a token of their own (Gemma has one for each count up to 31).
    """
    runs = (tokenizer.encode("\n" * count) for count in range(1, _LONGEST_RUN + 1))
    newlines = [ids[0] for ids in runs if len(ids) == 1]
    return tuple(sorted({*tokenizer.stop_ids, *newlines}))
