"""The LLM's tokenizer: text <-> ids, the chat template, and every id that ends an answer.

A wrong or missing end id is the commonest cause of endless answers, so stop ids come from all places
that know them: the tokenizer, the generation config, the model config, and the chat template itself.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from absl import logging

from tiny_align_jax.types import AssetError, ConfigError

Message = Mapping[str, str]  # {'role': 'system' | 'user' | 'assistant', 'content': text}
_REPLACEMENT = "\ufffd"  # what decoding gives for half of a multi-byte character
# Classes that add nothing to tokenizer.json. `AutoTokenizer` loads torch, where installed, before it gets to
# them: 2 s and 200 MB.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


class Tokenizer:
    """A Hugging Face fast tokenizer, reduced to what this package needs.

    Attributes:
        eos_id: id of the end-of-text token.
        bos_id: id of the beginning-of-text token, None if the model has none.
        stop_ids: sorted ids that end an answer; `eos_id` is among them.
    """

    def __init__(self, hf: Any, extra_stop_ids: Iterable[int] = ()):
        """Wraps a `transformers` tokenizer.

        Args:
            hf: a fast tokenizer.
            extra_stop_ids: ids that end an answer according to the model's configs.

        Raises:
            AssetError: the tokenizer has no end-of-text token.
        """
        if hf.eos_token_id is None:
            raise AssetError(
                f"tokenizer of {hf.name_or_path!r} has no eos_token: answers could never end; "
                "set it in tokenizer_config.json"
            )
        self._hf = hf
        self.eos_id: int = hf.eos_token_id
        self.bos_id: int | None = hf.bos_token_id
        turn_end = self._turn_end_id()
        stops = {self.eos_id, *extra_stop_ids} | ({turn_end} if turn_end is not None else set())
        self.stop_ids: tuple[int, ...] = tuple(sorted(int(i) for i in stops))

    def __len__(self) -> int:
        return len(self._hf)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was trained on chat turns."""
        return bool(self._hf.chat_template)

    @property
    def special_strings(self) -> tuple[str, ...]:
        """Texts that `encode` turns into control tokens."""
        return tuple(str(t) for t in self._hf.all_special_tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added, control tokens written out in the text are recognised."""
        return self._hf.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without control tokens; spaces stay as they are."""
        return self._hf.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def control_text(self, token_id: int) -> str:
        """How a control token is written in a text that `encode` reads."""
        return self._hf.convert_ids_to_tokens(token_id)

    def token_strings(self, ids: Iterable[int] | None = None) -> tuple[str, ...]:
        """What every id (of `ids`, if given) adds to a text that already has begun; '' for control tokens.

        Decoded after a common token, because some decoders drop a text's first space.
        """
        anchor = self.encode("a")
        start = len(self.decode(anchor))
        pairs = [[*anchor, int(i)] for i in (range(len(self)) if ids is None else ids)]
        texts = self._hf.batch_decode(
            pairs, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        # Of no ids at all, `batch_decode` makes one text.
        return tuple(text[start:] for text in texts[: len(pairs)])

    def render(self, messages: Sequence[Message]) -> str:
        """Chat turns as one text that ends where the assistant begins to answer.

        A template without a system role gets the system text at the head of the first user turn.

        Raises:
            ConfigError: the template refuses the turns.
        """
        try:
            return self._apply(messages, add_generation_prompt=True)
        except Exception as error:  # templates raise whatever their author chose
            if not messages or messages[0]["role"] != "system":
                raise ConfigError(f"the chat template refused the prompt: {error}") from error
        return self.render(_fold_system(messages))

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self._hf.apply_chat_template(
            [dict(m) for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,  # Qwen3 and kin answer at once; other templates ignore it
        )

    def _turn_end_id(self) -> int | None:
        """Control token that the chat template puts after an assistant's words."""
        if not self.has_chat_template:
            return None
        mark = "MARK"
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        try:
            rendered = self._apply(turns, add_generation_prompt=False)
        except Exception as error:  # as in `render`
            logging.warning("the chat template's end of turn is unknown: %s", error)
            return None
        following = self.encode(rendered.rpartition(mark)[2].lstrip())
        is_control = bool(following) and following[0] in self._hf.all_special_ids
        return following[0] if is_control else None


class TextStream:
    """Turns ids that arrive one by one into text pieces; half characters wait for their other half."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; '' while a character is incomplete."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith(_REPLACEMENT) else self._advance(text)

    def flush(self) -> str:
        """What is left when the answer ends inside a character."""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        new, self._shown = text[self._shown :], len(text)
        return new


def load(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a canonical model folder; runs no code from it and reaches no network.

    Raises:
        AssetError: files missing or unreadable.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise AssetError(
            f"{folder} has no tokenizer.json; expected a canonical model folder "
            "(python -m experiments.fetch_assets)"
        )
    try:
        hf = _reader(folder).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise AssetError(f"cannot read the tokenizer in {folder}: {error}") from error
    return Tokenizer(hf, _config_stop_ids(folder))


def _reader(folder: Path) -> Any:
    """The class that reads the folder's tokenizer."""
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if named.get("tokenizer_class") in _PLAIN_CLASSES:
        return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """Turns with the system text at the head of the first user turn."""
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}".strip()}, *others]


def _config_stop_ids(folder: Path) -> set[int]:
    """`eos_token_id` of the generation config and of the model config: one id, a list, or nothing."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            ids.update([] if value is None else [value] if isinstance(value, int) else value)
        except (ValueError, TypeError, AttributeError) as error:
            raise AssetError(f"cannot read eos_token_id from {path}: {error}") from error
    return ids
