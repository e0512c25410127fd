"""What a language model says about texts: the frozen LLM, n-grams, or both, for rescoring and fusion.

The LLM judges a text as the next line of a list. With a few training sentences as the lines before, it
knows what people say here (short, simple, lower case); without them a chat model finds every such line
odd. The lines' keys and values are computed once.

Rows of a reading are tokens of the LLM, but not always those its tokenizer would have cut the text
into. Judged is the text, tokenised anew. While a beam grows, the row that comes next is judged as
the token that it is; as soon as it stands, the whole text is, and replaces the guess (`beam.Language`).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import beam, decode_loop
from tiny_align_jax.data import tokenizer, vocabulary
from tiny_align_jax.ngram import Ngram
from tiny_align_jax.responder import Llm
from tiny_align_jax.types import Array, ConfigError, PyTree

_LINE = "-"
# Padded lengths and batch sizes; each pair that occurs compiles once. A batch holds a copy of the
# context's keys and values a row, which is why a CPU with little memory gets small ones.
_LENGTHS = (8, 16, 32, 64, 128, 256)
_BATCH_SIZES = {"cpu": (8, 32), "accelerator": (8, 32, 256)}


class LlmJudge:
    """The frozen LLM as a judge of texts."""

    def __init__(
        self,
        llm: Llm,
        words: tokenizer.Tokenizer,
        sentences: Sequence[str] = (),
        batch_sizes: Sequence[int] | None = None,
        max_context_tokens: int = 0,
    ):
        """Reads the lines before the text.

        Args:
            llm: the LLM.
            words: its tokenizer.
            sentences: training sentences to stand before a text, in spoken form.
            batch_sizes: padded batch sizes, the last is the largest; None for the device's default.
            max_context_tokens: keep only so many tokens of the lines, the last ones; 0 keeps all. Judges
                behind contexts of equal length share compiled programs.

        Raises:
            ConfigError: sentences with control tokens of the LLM in them.
        """
        found = [s for s in words.special_strings if s and any(s in t for t in sentences)]
        if found:
            raise ConfigError(f"context sentences contain control tokens ({', '.join(found)})")
        lines = "".join(f"{_LINE} {s}\n" for s in sentences) + _LINE
        first = words.eos_id if words.bos_id is None else words.bos_id
        ids = np.array([first, *words.encode(lines)[-max_context_tokens:]], np.int32)
        self._llm, self._words = llm, words
        self._prefix = decode_loop.Prefix(
            decode_loop.read_prefix(llm.model, llm.params, ids[:-1]), len(ids) - 1
        )
        self._last_id, self._end_id = ids[-1], np.int32(words.encode("\n")[0])
        kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
        self._batch_sizes = tuple(batch_sizes or _BATCH_SIZES[kind])

    def log_probs(self, texts: Sequence[str]) -> np.ndarray:
        """Log-probability of every text with its end, float32[N]."""
        no_rows = np.zeros(0, np.int32)
        total_N, _, end_N = self._judge(texts, no_rows)
        return total_N + end_N

    def score(self, rows: vocabulary.Vocabulary) -> beam.Score:
        """The judge in the form that a beam search over `rows` asks."""

        def score(prefixes: Sequence[beam.Rows]) -> list[beam.Language]:
            texts = [rows.decode(prefix) for prefix in prefixes]
            total_N, next_NV, end_N = self._judge(texts, rows.row_ids)
            return [
                beam.Language(float(total), following, float(end))
                for total, following, end in zip(total_N, next_NV, end_N, strict=True)
            ]

        return score

    def _judge(
        self, texts: Sequence[str], row_ids_V: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-probability of each text, of each row after it, and of its end."""
        ids = [self._words.encode(" " + text) if text else [] for text in texts]
        total_N, end_N = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32)
        next_NV = np.zeros((len(ids), len(row_ids_V)), np.float32)
        # Neighbours in length share a batch: less padding. Results do not depend on it.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self._batch_sizes[-1]):
            index = np.array(order[start : start + self._batch_sizes[-1]])
            ids_BN, num_B = self._pad([ids[i] for i in index])
            found = _judge(
                self._llm.model,
                self._llm.params,
                self._prefix,
                self._last_id,
                ids_BN,
                num_B,
                self._end_id,
                row_ids_V,
            )
            total_N[index], next_NV[index], end_N[index] = (
                np.asarray(x)[: len(index)] for x in found
            )
        return total_N, next_NV, end_N

    def _pad(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        longest = max(len(i) for i in ids)
        length = next((n for n in _LENGTHS if n >= longest), longest)
        batch = next(b for b in self._batch_sizes if b >= len(ids))
        ids_BN, num_B = np.zeros((batch, length), np.int32), np.zeros(batch, np.int32)
        for row, (padded, found) in enumerate(zip(ids_BN, ids, strict=False)):
            padded[: len(found)] = found
            num_B[row] = len(found)
        return ids_BN, num_B


@functools.partial(jax.jit, static_argnames=("model",))
def _judge(
    model: decode_loop.LanguageModel,
    params: PyTree,
    prefix: decode_loop.Prefix,
    last_id: Array,
    ids_BN: Array,
    num_B: Array,
    end_id: Array,
    row_ids_V: Array,
) -> tuple[Array, Array, Array]:
    """Log-probabilities of texts behind a shared prefix.

    Args:
        model, params: the LLM.
        prefix: all that stands before a text but its last token.
        last_id: that token; it predicts a text's first.
        ids_BN: tokens of the texts, padded on the right.
        num_B: how many are real; may be 0.
        end_id: token that ends a text.
        row_ids_V: tokens whose log-probability as the next is wanted.

    Returns:
        log-probability of each text [B], of each row after it [B, V], and of its end [B].
    """
    batch, length = ids_BN.shape
    tail_BN = jnp.pad(ids_BN, ((0, 0), (1, 0)), constant_values=last_id)
    past, place_N = prefix.num_tokens, jnp.arange(length + 1)
    cache = decode_loop.widen(prefix.cache, model.init_cache(batch, past + length + 1))
    logits_BNV, _ = model.apply(
        params,
        model.embed(params, tail_BN),
        jnp.broadcast_to(past + place_N, tail_BN.shape),
        place_N[None] <= num_B[:, None],
        cache,
    )
    norm_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    right_BN = jnp.take_along_axis(logits_BNV[:, :-1], ids_BN[..., None], axis=-1)[..., 0]
    given_BN = place_N[None, :-1] < num_B[:, None]
    total_B = jnp.where(given_BN, right_BN - norm_BN[:, :-1], 0.0).sum(-1)
    last_BV = jnp.take_along_axis(logits_BNV, num_B[:, None, None], axis=1)[:, 0]
    last_BV -= jnp.take_along_axis(norm_BN, num_B[:, None], axis=1)
    return total_B, last_BV[:, row_ids_V], last_BV[:, end_id]


def ngram_score(model: Ngram) -> beam.Score:
    """An n-gram model in the form that a beam search asks."""

    @functools.lru_cache(maxsize=4096)
    def following(prefix: beam.Rows) -> np.ndarray:
        return model.next_log_probs(prefix)

    @functools.lru_cache(maxsize=65536)
    def total(prefix: beam.Rows) -> float:
        return total(prefix[:-1]) + float(following(prefix[:-1])[prefix[-1]]) if prefix else 0.0

    def score(prefixes: Sequence[beam.Rows]) -> list[beam.Language]:
        answers = []
        for prefix in prefixes:
            next_V = following(prefix)
            answers.append(beam.Language(total(prefix), next_V, float(next_V[0])))
        return answers

    return score


def mix(weighted: Sequence[tuple[float, beam.Score]]) -> beam.Score | None:
    """The weighted sum of several opinions (a log-linear mixture); None of none."""
    used = [(weight, score) for weight, score in weighted if weight]
    if not used:
        return None

    def mixed(prefixes: Sequence[beam.Rows]) -> list[beam.Language]:
        said = [(weight, score(prefixes)) for weight, score in used]
        return [
            beam.Language(
                sum(w * answers[i].log_prob for w, answers in said),
                np.sum([w * answers[i].next_V for w, answers in said], axis=0),
                sum(w * answers[i].end for w, answers in said),
            )
            for i in range(len(prefixes))
        ]

    return mixed
