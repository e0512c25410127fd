"""What of an LLM can go: table rows that no text of the user needs, layers that change little.

Rows are chosen by text, layers by how alike the vectors are that go into a layer and come out. What stays
is a `shrunk.Choice`, which a run keeps in projector.json; `weights.shrunk` makes the smaller LLM of it.

Source of the layers' score: 'block influence', one less the mean cosine of a block's input and output
(Men et al., arXiv 2403.03853), here on training transcripts inside the run's own prompt.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax import checks, decode_loop, placing
from tiny_align_jax.data import prompts, tokenizer, vocabulary
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.types import Array, ConfigError, PyTree
from tiny_align_jax.weights import loading, shrunk, shrunk_tokenizer
from tiny_align_jax.weights.folder import ModelFolder

TRAIN = "train"
_NUM_CALIBRATED = 8  # transcripts, each behind the whole prompt


@dataclasses.dataclass(frozen=True)
class Config:
    """How to make the LLM smaller; the defaults leave it whole.

    Attributes:
        vocabulary: '' keeps every token; 'train' keeps those of the training transcripts and of the
            prompt; a file keeps those of its lines, the training transcripts and the prompt. Words that
            need another token are spelled with shorter ones.
        drop_layers: so many layers go, those that change their input least.
    """

    vocabulary: str = ""
    drop_layers: int = 0

    def __post_init__(self):
        checks.refuse("shrink", checks.below(self, 0, "drop_layers"))

    @property
    def is_whole(self) -> bool:
        """Whether nothing goes."""
        return not self.vocabulary and not self.drop_layers


def choose(
    config: Config,
    folder: ModelFolder,
    texts: Sequence[str],
    prompt: prompts.Config,
    held: quantize.Config | None = None,
) -> shrunk.Choice:
    """What stays.

    Args:
        config: how to make it smaller.
        folder: the whole LLM.
        texts: training transcripts.
        prompt: what the LLM is told.
        held: how its matrices are held while layers are scored.

    Raises:
        ConfigError: a tokenizer that cannot be reduced, or more layers to drop than there are.
        DataError: a text file that cannot be read.
    """
    if config.is_whole:
        return shrunk.Choice()
    words = tokenizer.load(folder.path)
    ids = kept_ids(config, folder, texts, prompt, words) if config.vocabulary else None
    layers = None
    if config.drop_layers:
        layers = _layers(config.drop_layers, layer_scores(folder, texts, prompt, words, held))
    choice = shrunk.Choice(ids, layers)
    kept = "all" if ids is None else len(ids)
    logging.info(
        "of %s stay %s of %d tokens, layers %s", folder.name, kept, len(words), layers or "all"
    )
    return choice


def kept_ids(
    config: Config,
    folder: ModelFolder,
    texts: Sequence[str],
    prompt: prompts.Config,
    words: tokenizer.Tokenizer,
) -> tuple[int, ...]:
    """Tokens that stay of a vocabulary that is made smaller; arguments and errors as `choose`."""
    wanted = [*texts, *_lines(config.vocabulary)]
    return shrunk_tokenizer.closure(folder.path, ids_of(wanted, prompt, words))


def ids_of(texts: Sequence[str], prompt: prompts.Config, words: tokenizer.Tokenizer) -> set[int]:
    """LLM ids of texts as they are written, as they are spoken, at the start and inside; and the prompt's."""
    built = prompts.build(prompt, words)
    ids = {*built.prefix_ids.tolist(), *built.suffix_ids.tolist(), *built.stop_ids}
    for text in {*texts} | {vocabulary.spoken_form(text) for text in texts}:
        ids.update(words.encode(text), words.encode(" " + text))
    return ids


def layer_scores(
    folder: ModelFolder,
    texts: Sequence[str],
    prompt: prompts.Config,
    words: tokenizer.Tokenizer,
    held: quantize.Config | None = None,
) -> np.ndarray:
    """One less the mean cosine of what goes into each layer and what comes out, float32 [layers]."""
    loaded = loading.load_llm(folder, jnp.float32, held or quantize.Config())
    model = decode_loop.LanguageModel(loaded.module, loaded.config, jnp.float32)
    built = prompts.build(prompt, words)
    drawn = np.random.default_rng(0).permutation(len(texts))[:_NUM_CALIBRATED]
    rows = []
    for index in drawn:
        said = vocabulary.spoken_form(texts[int(index)])
        asked = [*built.prefix_ids, *words.encode(" " + said), *built.suffix_ids]
        rows.append([*asked, *words.encode(said)])
    ids_BN = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask_BN = np.zeros(ids_BN.shape, bool)
    for i, row in enumerate(rows):
        ids_BN[i, : len(row)], mask_BN[i, : len(row)] = row, True
    return np.asarray(_scores(model, placing.put(loaded.params), ids_BN, mask_BN))


@functools.partial(jax.jit, static_argnames=("model",))
def _scores(
    model: decode_loop.LanguageModel, params: PyTree, ids_BN: Array, mask_BN: Array
) -> Array:
    inputs_BND = model.embed(params, ids_BN)
    positions_BN = jnp.broadcast_to(jnp.arange(ids_BN.shape[1]), ids_BN.shape)
    outputs_LBND = model.layer_outputs(params, inputs_BND, positions_BN, mask_BN)
    before_LBND = jnp.concatenate([inputs_BND[None], outputs_LBND[:-1]])
    sizes = jnp.linalg.norm(before_LBND, axis=-1) * jnp.linalg.norm(outputs_LBND, axis=-1)
    cosine_LBN = jnp.sum(before_LBND * outputs_LBND, axis=-1) / jnp.maximum(sizes, 1e-9)
    return 1 - jnp.sum(jnp.where(mask_BN, cosine_LBN, 0.0), axis=(1, 2)) / mask_BN.sum()


def _layers(count: int, scores_L: np.ndarray) -> tuple[int, ...]:
    """Indices of all layers but the `count` of the smallest scores."""
    if count >= len(scores_L):
        raise ConfigError(
            f"shrink: drop_layers={count}; the LLM has {len(scores_L)}, one must stay"
        )
    logging.info("layers by how much they change: %s", np.round(scores_L, 3).tolist())
    return tuple(sorted(int(i) for i in np.argsort(scores_L, kind="stable")[count:]))


def _lines(vocabulary_name: str) -> list[str]:
    if vocabulary_name == TRAIN:
        return []
    lines = checks.lines_of("shrink.vocabulary", vocabulary_name, "'', 'train' or a text file")
    return [line for line in lines if line.strip()]
