"""Tokenizers out of GGUF metadata, against the tokenizer they came from or a plain reference."""

import itertools

import numpy as np
import pytest

from tests.weights import writers
from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights import canonical
from tiny_align_jax.weights.gguf_tokenizer import build_tokenizer, tokenizer_config

_TEXTS = (
    *writers.TEXTS,
    "",
    " leading and  double   spaces\n\nnew lines\t",
    "<|im_start|>user\nhello<|im_end|>",
    "日本語 and 🙂🙃 and 1234567",
)


def _metadata(part):
    metadata = {f"tokenizer.ggml.{key}": value for key, value in part.items()}
    if "chat_template" in part:
        metadata["tokenizer.chat_template"] = metadata.pop("tokenizer.ggml.chat_template")
    return metadata


def test_byte_level_bpe_equals_the_tokenizer_it_came_from():
    original = writers.trained_bpe()
    rebuilt = build_tokenizer(_metadata(writers.bpe_metadata(original)))
    for text in _TEXTS:
        ids = rebuilt.encode(text).ids
        assert ids == original.encode(text).ids, text
        assert rebuilt.decode(ids, skip_special_tokens=False) == text


def test_the_canonical_folder_works_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    writers.write_llama_gguf(tmp_path / "m.gguf")
    out = tmp_path / "out"
    out.mkdir()
    canonical.from_gguf(tmp_path / "m.gguf", out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    original = writers.trained_bpe()
    for text in _TEXTS:
        assert tokenizer(text)["input_ids"] == original.encode(text).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "<|im_start|>hello<|im_end|>"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("llama-bpe", ["ĠI", "'m", "Ġ", "123", "456", "7"]),
        ("qwen2", ["ĠI", "'m", "Ġ", *"1234567"]),
        ("gpt-2", ["ĠI", "'m", "Ġ1234567"]),
        ("smollm", ["ĠI", "'m", "Ġ", *"1234567"]),
    ],
)
def test_pre_tokenizers_split_as_their_models_do(pre, expected):
    part = writers.bpe_metadata(writers.trained_bpe(), pre)
    pre_tokenizer = build_tokenizer(_metadata(part)).pre_tokenizer
    assert [word for word, _ in pre_tokenizer.pre_tokenize_str(" I'm 1234567")] == expected


def test_beginning_of_text_is_added_where_the_model_wants_it():
    part = writers.bpe_metadata(writers.trained_bpe()) | {"add_bos_token": True}
    tokenizer = build_tokenizer(_metadata(part))
    assert tokenizer.encode("the fox").tokens[0] == "<|im_start|>"
    assert tokenizer.encode("the fox", add_special_tokens=False).tokens[0] != "<|im_start|>"


def test_tokenizer_config():
    config = tokenizer_config(_metadata(writers.bpe_metadata(writers.trained_bpe())))
    assert config["eos_token"] == "<|im_end|>" and config["pad_token"] == "<|im_end|>"
    assert config["bos_token"] == "<|im_start|>" and "unk_token" not in config
    assert config["chat_template"].startswith("{% for")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "'bert'; known: gpt2, llama"),
        ({"pre": "klingon"}, "'klingon'"),
        ({"tokens": ["a", "a", "b"]}, "repeats 1"),
    ],
)
def test_unknown_kinds_are_refused(change, message):
    part = writers.bpe_metadata(writers.trained_bpe()) | change
    with pytest.raises(WeightsError, match=message):
        build_tokenizer(_metadata(part))


def test_no_vocabulary_is_refused():
    with pytest.raises(WeightsError, match="None"):
        build_tokenizer({})


# ---- SentencePiece -------------------------------------------------------------------------

_WORDS = ("▁the", "▁a", "th", "he", "▁t", "▁th", "an", "▁an", "at", "hat", "ea", "tea", "▁he", "▁▁")
_LETTERS = ("▁", *"thean")
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<turn>")
_BYTES = tuple(f"<0x{b:02X}>" for b in range(256))


def _spm_metadata(add_space_prefix: bool, add_bos: bool = False):
    tokens = [*_SPECIAL, *_BYTES, *_WORDS, *_LETTERS]
    types = [3] * 4 + [4] + [6] * 256 + [1] * (len(_WORDS) + len(_LETTERS))
    rank = itertools.count()
    scores = [0.0] * (len(_SPECIAL) + 256) + [-float(next(rank)) for _ in (*_WORDS, *_LETTERS)]
    return _metadata(
        {
            "model": "llama",
            "tokens": tokens,
            "scores": scores,
            "token_type": types,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "unknown_token_id": 3,
            "padding_token_id": 0,
            "add_bos_token": add_bos,
            "add_space_prefix": add_space_prefix,
        }
    )


def _reference_pieces(metadata, text: str) -> list[str]:
    """SentencePiece's BPE as its paper states it: join the best-scored neighbours, again and again."""
    scores = {
        token: score
        for token, score, kind in zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
        if kind == 1
    }
    prefix = "▁" if metadata["tokenizer.ggml.add_space_prefix"] and text else ""
    pieces = list(prefix + text.replace(" ", "▁"))
    while True:
        joined = [a + b for a, b in itertools.pairwise(pieces)]
        best = max(
            (i for i, piece in enumerate(joined) if piece in scores),
            key=lambda i: (scores[joined[i]], -i),
            default=None,
        )
        if best is None:
            break
        pieces[best : best + 2] = [joined[best]]
    spelt = [[p] if p in scores else [f"<0x{b:02X}>" for b in p.encode()] for p in pieces]
    return list(itertools.chain.from_iterable(spelt))


@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentencepiece_equals_the_plain_algorithm(add_space_prefix):
    metadata = _spm_metadata(add_space_prefix)
    tokenizer = build_tokenizer(metadata)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("thean  é"), rng.integers(0, 24))) for _ in range(500)]
    for text in texts:
        pieces = tokenizer.encode(text).tokens
        assert pieces == _reference_pieces(metadata, text), repr(text)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_special_and_user_defined_pieces():
    tokenizer = build_tokenizer(_spm_metadata(False, add_bos=True))
    assert tokenizer.encode("the<turn> hat<eos>").tokens == [
        *("<bos>", "th", "e", "<turn>", "▁", "hat", "<eos>")
    ]
    assert tokenizer.decode(tokenizer.encode("the<turn> hat<eos>").ids) == "the<turn> hat"
