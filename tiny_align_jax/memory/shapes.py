"""Shapes of all that a run holds, without weights, data or a device: `jax.eval_shape` throughout."""

import dataclasses
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import decode_loop, registry
from tiny_align_jax.data import batching
from tiny_align_jax.features import cache
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.train import loop, setup, step
from tiny_align_jax.train.partition import partition
from tiny_align_jax.types import SAMPLE_RATE_HZ, Batch, Frozen, PyTree
from tiny_align_jax.weights import loading
from tiny_align_jax.weights.folder import ModelFolder

_FLOAT = quantize.Config()


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen model without its weights.

    Attributes:
        family: plug-in module.
        config: that family's Config.
        dtype: of parameters and computation.
        held: how its matrices are held.
        folder: its files, where only they tell what it takes: GGUF blocks.
    """

    family: ModuleType
    config: Any
    dtype: Any
    held: quantize.Config = _FLOAT
    folder: ModelFolder | None = None

    def params(self, kind: str, dtype: Any = None) -> PyTree:
        """Shapes of its parameters as they are held; `kind` is 'encoders' or 'llms'."""
        dtype = self.dtype if dtype is None else dtype
        if self.folder is not None:
            return _cut(loading.held_shapes(self.folder, kind, dtype, self.held), self.config)
        return loading.held_shapes_of(kind, self.family, self.config, dtype, self.held)


@dataclasses.dataclass(frozen=True)
class Work:
    """What sizes depend on besides the config.

    Attributes:
        num_utterances: of the training corpus.
        max_frames: encoder frames of the longest utterance.
        mean_frames: on average.
        num_rows: rows of the LLM's table that the vocabulary uses.
        max_targets: tokens of the longest transcript.
        validates: whether there are validation speakers.
        prefix_tokens: the prompt before the audio.
        tail_tokens: audio and the end of the prompt, as padded.
        new_tokens: longest answer.
        num_answers: utterances that the LLM answers at a time.
        num_recordings: utterances that the encoder hears at a time before they are answered.
        num_workers: threads that decode audio.
        num_test: utterances that an evaluation answers.
    """

    num_utterances: int
    max_frames: int
    mean_frames: int
    num_rows: int
    max_targets: int = 64
    validates: bool = True
    prefix_tokens: int = 256
    tail_tokens: int = 64
    new_tokens: int = 64
    num_answers: int = 1
    num_recordings: int = 1
    num_workers: int = 4
    num_test: int = 1000


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Everything that the stages of one config hold, as `jax.ShapeDtypeStruct`s.

    Attributes:
        config: resolved sections, as plain mappings.
        encoder: the frozen encoder.
        llm: the frozen LLM.
        work: sizes of data and prompts.
        scored_llm: the whole LLM where a run drops layers of it: it is loaded to choose them.
    """

    config: Mapping[str, Any]
    encoder: Model
    llm: Model
    work: Work
    scored_llm: Model | None = None

    # ---- frozen models --------------------------------------------------------------------------

    @functools.cached_property
    def encoder_params(self) -> PyTree:
        """Parameters of the encoder, as they are held."""
        return self.encoder.params("encoders")

    @functools.cached_property
    def llm_params(self) -> PyTree:
        """Parameters of the LLM, as they are held."""
        return self.llm.params("llms")

    # ---- audio and features ---------------------------------------------------------------------

    @functools.cached_property
    def layers(self) -> tuple[int, ...]:
        """Hidden states that are kept, counted from 0."""
        depth = self.encoder.config.num_layers
        return tuple(layer % (depth + 1) for layer in self.config["encoder"]["layers"])

    @property
    def feature_dim(self) -> int:
        """Width of the cached frames."""
        return self.encoder.config.dim * len(self.layers)

    @property
    def window_frames(self) -> int:
        """Encoder frames of a window."""
        return self.encoder.family.num_frames(self.encoder.config, self._window_samples)

    @property
    def bucket_frames(self) -> int:
        """Frames that the longest utterance is padded to."""
        return batching.bucket_lengths(np.array([self.work.max_frames]), 1)[0]

    @property
    def _window_samples(self) -> int:
        return round(self.config["encoder"]["window_s"] * SAMPLE_RATE_HZ)

    @functools.cached_property
    def _input(self) -> np.ndarray:
        silence = np.zeros(self._window_samples, np.float32)
        return self.encoder.family.preprocess(self.encoder.config, silence, self._window_samples)

    def inputs(self, batch_size: int) -> tuple[Any, Any]:
        """What the encoder reads: preprocessed audio, and its valid samples."""
        audio = shape((batch_size, *self._input.shape), self._input.dtype)
        return audio, shape((batch_size,), jnp.int32)

    def frames(self, batch_size: int, num_frames: int) -> Any:
        """Frames as the cache keeps them."""
        return shape((batch_size, num_frames, self.feature_dim), cache.STORE_DTYPE)

    def batch(self, num_rows: int, leading: tuple[int, ...] = ()) -> Batch:
        """A training batch (or, with a number of utterances, a corpus on the device)."""

        def of(dtype: Any, *rest: int) -> Any:
            return shape((*leading, num_rows, *rest), dtype)

        made = Batch(
            features_BTE=of(cache.STORE_DTYPE, self.bucket_frames, self.feature_dim),
            num_frames_B=of(jnp.int32),
            target_ids_BL=of(jnp.int32, self.work.max_targets),
            num_targets_B=of(jnp.int32),
            weight_B=of(jnp.float32),
            index_B=of(jnp.int32),
        )
        return made

    # ---- what trains ----------------------------------------------------------------------------

    @functools.cached_property
    def train(self) -> loop.Config:
        """Settings of the loop."""
        return registry.make_config(loop, self.config["train"])

    @functools.cached_property
    def spec(self) -> step.StepSpec:
        """The training step."""
        module, _ = registry.from_section("objectives", self.config["objective"])
        llm = (self.llm.family, self.llm.config) if "llm" in module.NEEDS else None
        return setup.step_spec(self.config, self.llm.config.dim, 1.0, llm)

    @functools.cached_property
    def table(self) -> Frozen:
        """Rows of the LLM's embedding table."""
        rows = self.work.num_rows
        table_VD = shape((rows, self.llm.config.dim), jnp.float32)
        return Frozen(table_VD=table_VD, row_ids_V=shape((rows,), jnp.int32))

    @functools.cached_property
    def frozen(self) -> Frozen:
        """What the objective reads: table rows, and the LLM if it asks for it."""
        if self.spec.llm is None:
            return self.table
        ids = functools.partial(shape, dtype=jnp.int32)
        return dataclasses.replace(
            self.table,
            llm=self.llm_params,
            prefix_ids_P=ids((self.work.prefix_tokens,)),
            suffix_ids_P=ids((8,)),
            slot_ids_V=ids((self.work.num_rows,)),
        )

    @functools.cached_property
    def training_frozen(self) -> Frozen:
        """`frozen` with what the objective works out of it once a run."""
        make = functools.partial(
            step.with_constants, self.spec.objective, self.spec.objective_config, llm=self.spec.llm
        )
        return jax.eval_shape(make, self.frozen)

    @functools.cached_property
    def params(self) -> PyTree:
        """Parameters of projector and objective."""
        frames = np.zeros((1, self.feature_dim), cache.STORE_DTYPE)
        examples = batching.make_examples(["-"], [1], [np.zeros(1, np.int32)], lambda _: frames)

        def init(frozen: Frozen) -> PyTree:
            return loop.init_params(loop.Run(self.train, self.spec, frozen, examples, None, 0))

        return jax.eval_shape(init, self.frozen)

    @functools.cached_property
    def state(self) -> step.TrainState:
        """What a training step carries."""
        halves = partition(self.params, self.train.trainable, self.train.fixed)
        return jax.eval_shape(lambda a, b: step.init_state(self.spec, a, b, 0), *halves)

    # ---- answering ------------------------------------------------------------------------------

    def language_model(self, dtype: Any) -> decode_loop.LanguageModel:
        """The LLM without its parameters, computing in `dtype`."""
        return decode_loop.LanguageModel(self.llm.family, self.llm.config, dtype)

    @property
    def sampling(self) -> decode_loop.Sampling:
        """Greedy, up to the longest answer."""
        return decode_loop.Sampling(self.work.new_tokens, 0.0, 0, 1.0)

    def prompt(self, dtype: Any) -> tuple[Any, ...]:
        """Arguments of `decode_loop.read_tail` after the parameters, its prefix among them."""
        batch, length, dim = self.work.num_answers, self.work.tail_tokens, self.llm.config.dim
        read = functools.partial(decode_loop.read_prefix, self.language_model(dtype))
        ids_P = shape((self.work.prefix_tokens,), jnp.int32)
        prefix = decode_loop.Prefix(
            jax.eval_shape(read, self.llm.params("llms", dtype), ids_P), self.work.prefix_tokens
        )
        row = functools.partial(shape, (batch,))
        tail = shape((batch, length, dim), jnp.float32), shape((batch, length), bool)
        return prefix, *tail, row(bool), row(jnp.int32), 0, shape((2,), jnp.int32)

    def answers(self, dtype: Any) -> decode_loop.State:
        """State of the answers, with the KV cache in it."""
        model = self.language_model(dtype)
        read = functools.partial(decode_loop.read_tail, model, self.sampling)
        return jax.eval_shape(read, self.llm.params("llms", dtype), *self.prompt(dtype))


def _cut(params: PyTree, config: Any) -> PyTree:
    """Shapes of a whole LLM's parameters without the layers and rows that its smaller `config` lacks."""
    if not hasattr(config, "vocab_size"):
        return params
    counts = {"layers": config.num_layers, "embedder": config.vocab_size, "head": config.vocab_size}

    def cut(path: Any, leaf: Any) -> Any:
        count = counts.get(path[0].key)
        return shape((leaf.shape[0] if count is None else count, *leaf.shape[1:]), leaf.dtype)

    return jax.tree_util.tree_map_with_path(cut, params)


def shape(dims: tuple[int, ...], dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct`; not declared so, because it stands where types say Array."""
    return jax.ShapeDtypeStruct(dims, jnp.dtype(dtype))
