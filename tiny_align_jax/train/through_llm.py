"""What objectives that train through the LLM need beside it: answer tokens, prompt ids, validation.

Their targets are the tokens of an ANSWER: as the LLM itself would write the transcript, so without the
leading space that a transcript has where it stands inside a prompt.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import decode, joined, lora, placing, registry
from tiny_align_jax.data import batching, prompts, vocabulary
from tiny_align_jax.responder import Llm, Responder
from tiny_align_jax.train.step import StepSpec
from tiny_align_jax.types import ConfigError, Frozen, PyTree
from tiny_align_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class AnswerTokenizer:
    """A tokenizer for `data.vocabulary`, which puts a space before every text: it is dropped here."""

    words: Any

    def encode(self, text: str) -> list[int]:
        """LLM ids of `text` at the start of an answer."""
        return self.words.encode(text.removeprefix(" "))


def vocabulary_tokenizer(objective: ModuleType, kind: str, words: Any) -> Any:
    """The tokenizer that makes the targets of `objective`.

    Raises:
        ConfigError: a sub-word inventory of our own for an objective that the LLM itself answers.
    """
    if "llm" not in objective.NEEDS:
        return words
    if kind == "pieces":
        raise ConfigError(
            f"vocabulary.kind='pieces' spells words as the LLM never would, but {objective.__name__} "
            "holds the LLM to them; set vocabulary.kind to 'seen' or 'full'"
        )
    return AnswerTokenizer(words)


def add_llm(
    frozen: Frozen,
    folder: Any,
    rows: vocabulary.Vocabulary,
    prompt: prompts.Prompt,
    dtype: Any,
    quantize: Any,
    adapts: bool,
) -> Frozen:
    """`frozen` with the LLM's parameters on the device and the ids around the audio.

    Args:
        frozen: with table rows.
        folder: model folder of the LLM.
        rows: the same table rows, with their strings.
        prompt: around the audio.
        dtype: of the parameters.
        quantize: how its matrices are held.
        adapts: whether adapters train in it, so that matrices have to stay apart. Else an accelerator joins
            those that read the same input: a loop over layers would do it anew in every layer of every step,
            and the validation, which decodes, would hold a joined copy beside these.
    """
    # Matrix by matrix, so that the host never holds them all.
    if adapts or jax.default_backend() == "cpu":
        place = lambda _, matrix: placing.put(matrix)  # noqa: E731
        params = loading.load_llm(folder, dtype, quantize, place).params
    else:
        loaded = loading.load_llm(folder, dtype, quantize, joined.place_unjoined)
        params = joined.for_decoding(loaded.params)
    return dataclasses.replace(
        frozen,
        llm=params,
        prefix_ids_P=prompt.prefix_ids,
        suffix_ids_P=prompt.suffix_ids,
        slot_ids_V=slot_ids(rows),
    )


def slot_ids(rows: vocabulary.Vocabulary) -> np.ndarray:
    """LLM id of every row's text with a leading space, its own id where that is no single token."""
    found = np.array(rows.row_ids, np.int32)
    words = rows.tokenizer.words  # type: ignore[union-attr]
    for row, text in enumerate(rows.strings):
        if text and not text.startswith(" ") and len(ids := words.encode(" " + text)) == 1:
            found[row] = ids[0]
    return found


def make_validation(
    spec: StepSpec,
    frozen: Frozen,
    data: batching.Examples,
    words: Any,
    prompt: prompts.Prompt,
    references: Mapping[str, str],
) -> Callable[[PyTree], dict[str, float]]:
    """Parameters -> corpus WER and ROUGE-1 of the LLM's answers to the raw audio tokens."""
    module, config = spec.llm
    dtype = jax.tree.leaves(frozen.llm["final_norm"])[0].dtype  # matrices may be quantised
    model = decode.LanguageModel(module, config, dtype)
    plain = Llm(model, frozen.llm)
    longest = max(len(words.encode(text.lower())) for text in references.values())
    settings = decode.Config(max_new_tokens=longest + 8)  # a run-away answer ends soon
    responder = Responder(plain, words, prompt, settings)
    project = jax.jit(spec.projector.apply)

    def validate(params: PyTree) -> dict[str, float]:
        heard, truths, reads = [], [], responder
        if adapters := params["objective"].get("lora"):
            reads = Responder(Llm(model, lora.merge(frozen.llm, adapters)), words, prompt, settings)
        for batch in batching.batches_of(data, 32, 2):
            mask_BT = jnp.arange(batch.features_BTE.shape[1])[None] < batch.num_frames_B[:, None]
            outputs = project({"params": params["projector"]}, batch.features_BTE, mask_BT)
            audio_BAD, valid_BA = (np.asarray(x) for x in outputs)
            for row in np.flatnonzero(batch.weight_B):
                heard.append(audio_BAD[row][valid_BA[row]])
                truths.append(references[data.ids[batch.index_B[row]]])
        texts = [answer.text for answer in reads.answer(heard)]
        return score_texts(truths, texts)

    return validate


def score_texts(truths: list[str], texts: list[str]) -> dict[str, float]:
    """Corpus WER and ROUGE-1."""
    scores: dict[str, float] = {}
    for name in ("wer", "rouge"):
        scorer = registry.resolve("metrics", name)
        scores |= scorer.compute(scorer.Config(), truths, texts)
    return {name: scores[name] for name in ("wer", "rouge1")}
