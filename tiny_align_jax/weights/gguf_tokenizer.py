"""tokenizer.json and tokenizer_config.json from GGUF metadata.

Two families: byte-level BPE with its merges ('gpt2': SmolLM2, Llama 3) and SentencePiece BPE with
scores ('llama': Gemma 3, TinyLlama, Mistral), whose merges are recovered from the scores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tiny_align_jax.types import WeightsError

_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # gguf.TokenType
_SPACE = "▁"  # SentencePiece's mark

# Llama 3's and Qwen 2's split patterns; they differ in how many digits stay together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that GGUF `metadata` describes.

    Raises:
        WeightsError: no vocabulary, or a kind that we do not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders or "tokenizer.ggml.tokens" not in metadata:
        raise WeightsError(f"GGUF tokenizer {kind!r}; known: {', '.join(sorted(builders))}")
    tokenizer = builders[kind](metadata)
    _add_tokens(tokenizer, metadata)
    _add_template(tokenizer, metadata)
    return tokenizer


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template if the file has one."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    }
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if context is not None:
        config["model_max_length"] = int(context)
    for hf, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = _special(metadata, key)
        if token is not None:
            config[f"{hf}_token"] = token
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _byte_level_bpe(metadata: Mapping[str, Any]) -> Tokenizer:
    vocab = _vocab(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(m.split(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
    pre = metadata.get("tokenizer.ggml.pre", "default")
    # Llama 3's merges do not reach every token, so whole words that are tokens are looked up first
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    after_split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in ("default", "gpt-2"):
        return byte_level
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    digits = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}.get(pre)
    if digits is None:
        raise WeightsError(
            f"GGUF pre-tokenizer {pre!r}; known: default, gpt-2, llama-bpe, qwen2, smollm. "
            "Use the model's Hugging Face folder, which has its tokenizer.json"
        )
    split = pre_tokenizers.Split(Regex(_SPLIT.format(digits=digits)), behavior="isolated")
    return pre_tokenizers.Sequence([split, after_split])


def _sentencepiece_bpe(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocab = _vocab(tokens)
    model = models.BPE(
        vocab=vocab,
        merges=merges_from_scores(tokens, metadata["tokenizer.ggml.scores"], types),
        unk_token=_special(metadata, "unknown"),
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    tokenizer = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = normalizers.Replace(" ", _SPACE)
    prepend = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """BPE merges, best first, that rebuild a SentencePiece BPE vocabulary.

    SentencePiece joins the neighbours whose union has the highest score; so every way to split a
    normal piece into two known pieces is a merge with that piece's score.
    """
    rank = {t: (-s, i) for i, (t, s) in enumerate(zip(tokens, scores, strict=True)) if t}
    usable = {t for t, kind in zip(tokens, types, strict=True) if kind in (_NORMAL, _USER_DEFINED)}
    merges = []
    for piece, kind in zip(tokens, types, strict=True):
        if kind == _NORMAL:
            splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
            merges += [(rank[piece], pair) for pair in splits if usable.issuperset(pair)]
    merges.sort(key=lambda merge: merge[0])  # stable: splits of one piece stay in order
    return [pair for _, pair in merges]


def _add_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=True):
        if kind == _CONTROL:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_template(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Beginning and end of text around a sentence, where the model was trained with them."""
    bos = _special(metadata, "bos") if metadata.get("tokenizer.ggml.add_bos_token") else None
    eos = _special(metadata, "eos") if metadata.get("tokenizer.ggml.add_eos_token") else None
    if bos is None and eos is None:
        return
    special = [(t, tokenizer.token_to_id(t)) for t in (bos, eos) if t is not None]
    around = lambda body: " ".join(t for t in (bos, body, eos) if t is not None)  # noqa: E731
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around("$A"), pair=around("$A $B:1"), special_tokens=special
    )


def _special(metadata: Mapping[str, Any], key: str) -> str | None:
    token = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return None if token is None else metadata["tokenizer.ggml.tokens"][int(token)]


def _vocab(tokens: Sequence[str]) -> dict[str, int]:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise WeightsError(f"GGUF vocabulary repeats {len(tokens) - len(vocab)} of its tokens")
    return vocab
