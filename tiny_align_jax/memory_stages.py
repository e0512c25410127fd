"""The stages of a run as lists of parts: what each holds, when, and what its programs take.

Shapes come from `jax.eval_shape`, temporaries from compiling the very programs that the stage runs,
for shapes alone: no weights are read and nothing runs. What neither can know, the process itself, is
measured (docs/edge.md) and stands here as constants.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import decode, decode_loop, registry
from tiny_align_jax.data import batching
from tiny_align_jax.features import cache, pipeline, writer
from tiny_align_jax.memory import Config, Part, Stage, program_bytes, tree_bytes
from tiny_align_jax.train import loop, setup, step
from tiny_align_jax.train.partition import partition
from tiny_align_jax.types import SAMPLE_RATE_HZ, Batch, Frozen, PyTree
from tiny_align_jax.weights import loading

# Resident memory of a process that has imported everything and computed 1 + 1, and what compiling a
# stage's programs adds to it and keeps (docs/edge.md, 'How good the predictions are').
PROCESS_BYTES = {"cpu": 470_000_000, "gpu": 1_500_000_000}
COMPILER_BYTES = {"cpu": 140_000_000, "gpu": 300_000_000}
# A tokenizer of 49k entries takes 136 MB of Python objects, one of 262k 451 MB.
TOKENIZER_BYTES, TOKENIZER_BYTES_A_TOKEN = 63_000_000, 1_480
VALIDATION_BATCH = 32  # of `setup.make_validation`


@dataclasses.dataclass(frozen=True)
class Models:
    """The frozen parts without their weights.

    Attributes:
        encoder, llm: family modules.
        encoder_config, llm_config: their Configs.
        encoder_dtype, llm_dtype: of parameters and computation.
    """

    encoder: ModuleType
    encoder_config: Any
    encoder_dtype: Any
    llm: ModuleType
    llm_config: Any
    llm_dtype: Any

    @functools.cached_property
    def encoder_shapes(self) -> PyTree:
        """Parameters of the encoder."""
        shapes = loading.encoder_shapes(self.encoder, self.encoder_config)
        return _as_dtype(shapes, self.encoder_dtype)

    @functools.cached_property
    def llm_shapes(self) -> PyTree:
        """Parameters of the LLM."""
        return _as_dtype(loading.llm_shapes(self.llm, self.llm_config), self.llm_dtype)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage's size depends on besides the config.

    Attributes:
        num_utterances: of the training corpus.
        max_frames: encoder frames of the longest utterance.
        mean_frames: on average.
        num_rows: rows of the LLM's table that the vocabulary uses.
        max_targets: tokens of the longest transcript.
        validates: whether there are validation speakers.
        prefix_tokens: the prompt before the audio.
        tail_tokens: audio and the end of the prompt.
        new_tokens: longest answer.
        num_answers: utterances that the LLM answers at a time.
        num_workers: threads that decode audio.
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
    num_workers: int = 4


@dataclasses.dataclass(frozen=True)
class Planner:
    """Builds the stages of one config on one device.

    Attributes:
        config: resolved sections, as plain mappings.
        models: the frozen parts.
        work: sizes of the data.
        device: what is planned for.
    """

    config: Mapping[str, Any]
    models: Models
    work: Work
    device: Config

    def features(self) -> Stage:
        """The frozen encoder over a corpus, frames to the cache."""
        batch, models = self.config["features"]["batch_size"], self.models
        inputs_BS = self._inputs(batch)
        frames_BTE = _shape((batch, self._window_frames, self._feature_dim), cache.STORE_DTYPE)
        one = tree_bytes(self._inputs(1))
        weights = tree_bytes(models.encoder_shapes)
        parts = (
            *self._process(tokenizer=False),
            Part("encoder", device_bytes=weights),
            self._read_once("encoder, as read", weights),
            Part("audio of two batches", 2 * tree_bytes(inputs_BS), 2 * tree_bytes(inputs_BS)),
            Part("frames of two batches", 2 * tree_bytes(frames_BTE), 2 * tree_bytes(frames_BTE)),
            Part("audio decoded ahead", 0, self.work.num_workers * pipeline.AHEAD * one),
            Part("frames not yet written", 0, 2 * writer.SHARD_BYTES),
            Part("encoder: temporaries", self._encode_bytes(batch), 0, "encode"),
        )
        window_s = self.config["encoder"]["window_s"]
        return Stage("feature extraction", f"batch {batch}, window {window_s} s", parts)

    def training(self, name: str = "training") -> Stage:
        """Training on cached features; personalisation is the same with one user's utterances."""
        config = registry.make_config(loop, self.config["train"])
        spec, frozen, state = self._spec, self._frozen, self._state
        table = tree_bytes((frozen.table_VD, frozen.row_ids_V))
        batch = min(config.batch_size, self.work.num_utterances)
        corpus, corpus_parts, steps = self._corpus(config, batch)
        with self._compiling():
            step_bytes = program_bytes(steps, state, frozen, *corpus[0], **corpus[1])
        parts = [
            *self._process(),
            Part("projector and objective", tree_bytes((state.trainable, state.fixed))),
            Part("optimizer", tree_bytes(state.opt_state)),
            Part("running average", tree_bytes(state.average)),
            Part("table rows", table, table),
            *corpus_parts,
            Part("training step: temporaries", step_bytes, 0, "train"),
        ]
        if frozen.llm is not None:
            llm = tree_bytes(frozen.llm)
            parts += [Part("LLM", llm), self._read_once("LLM, as read", llm)]
        elif self.work.validates:
            # The validation hands the table over anew with every batch.
            parts.append(Part("table rows, again", table, 0, "validate"))
            parts.append(self._hear_part(VALIDATION_BATCH, "validate"))
        where = "on the device" if config.resident != "never" and steps is not None else ""
        del where
        setting = f"{self.work.num_utterances} utterances, batch {batch}, {self._bucket} frames"
        return Stage(name, setting, tuple(parts))

    def generation(self) -> Stage:
        """Recordings heard and answered: encoder, projector, LLM and KV cache in one process."""
        models, work = self.models, self.work
        llm, encoder = tree_bytes(models.llm_shapes), tree_bytes(models.encoder_shapes)
        table = tree_bytes((self._frozen.table_VD, self._frozen.row_ids_V))
        kv, prefix, tail_bytes, run_bytes = self._decode_bytes()
        parts = (
            *self._process(),
            Part("LLM", device_bytes=llm),
            self._read_once("LLM, as read", llm),
            Part("encoder", device_bytes=encoder),
            Part("projector and objective", tree_bytes((self._state.trainable, self._state.fixed))),
            Part("table rows", table, table),
            Part("KV cache of the prompt's first part", prefix),
            Part("KV cache", kv, 0, "answer"),
            Part("answering: temporaries", max(tail_bytes - kv, run_bytes), 0, "answer"),
            Part("encoder: temporaries", self._encode_bytes(1), 0, "encode"),
            self._hear_part(work.num_answers, "hear"),
        )
        length = work.prefix_tokens + work.tail_tokens + work.new_tokens
        return Stage("generation", f"batch {work.num_answers}, {length} tokens", parts)

    # ---- parts ------------------------------------------------------------------------------------

    def _process(self, tokenizer: bool = True) -> list[Part]:
        platform = "cpu" if self.device.on_cpu else "gpu"
        parts = [
            Part("Python, JAX and libraries", 0, PROCESS_BYTES[platform]),
            Part("compiler", 0, COMPILER_BYTES[platform]),
        ]
        if tokenizer:
            tokens = TOKENIZER_BYTES_A_TOKEN * self.models.llm_config.vocab_size
            parts.append(Part("tokenizer", 0, TOKENIZER_BYTES + tokens))
        return parts

    def _read_once(self, name: str, num_bytes: int) -> Part:
        """Weights on their way: an accelerator gets a copy, a CPU uses them where they were read."""
        return Part(name, 0, 0 if self.device.on_cpu else num_bytes, "load")

    def _corpus(self, config: loop.Config, batch: int):
        """Arguments of the training program after the state, their parts, and the program."""
        work, width = self.work, self._feature_dim
        corpus_bytes = work.num_utterances * self._bucket * width * cache.STORE_DTYPE.itemsize
        mapped = work.num_utterances * work.mean_frames * width * cache.STORE_DTYPE.itemsize
        pages = Part("feature cache, mapped", 0, mapped, reclaimable=True)
        steps = config.steps_per_dispatch
        if config.resident == "always" or (
            config.resident == "auto" and corpus_bytes <= config.resident_bytes
        ):
            corpus = self._batch(work.num_utterances, ())
            index_KB = _shape((steps, batch), jnp.int32)
            weight_KB = _shape((steps, batch), jnp.float32)
            size = tree_bytes(corpus)
            parts = [
                Part("corpus on the device", size),
                Part("corpus, as gathered", 0, size, "start"),
                pages,
            ]
            args = (corpus, index_KB, weight_KB, steps)
            static = {"max_frames": self._bucket}
            return (args, static), parts, step.make_resident_steps(self._spec)
        group = self._batch(batch, (steps,))
        size = tree_bytes(group)
        parts = [Part("two groups of batches", 2 * size, 2 * size), pages]
        return ((group,), {}), parts, step.make_stream_steps(self._spec)

    def _hear_part(self, batch: int, moment: str) -> Part:
        features = _shape((batch, self._bucket, self._feature_dim), cache.STORE_DTYPE)
        with self._compiling():
            size = program_bytes(
                setup.make_reader(self._spec),
                self._params,
                dataclasses.replace(self._frozen, llm=None),
                features,
                _shape((batch,), jnp.int32),
            )
        return Part("reading: temporaries", size + tree_bytes(features), 0, moment)

    def _encode_bytes(self, batch: int) -> int:
        models = self.models
        dtype = self._compute_dtype(models.encoder_dtype)
        with self._compiling():
            return program_bytes(
                pipeline.encode,
                models.encoder.Encoder(models.encoder_config, dtype),
                self._layers,
                _as_dtype(models.encoder_shapes, dtype),
                self._inputs(batch),
                _shape((batch,), jnp.int32),
            )

    def _decode_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of the KV cache and of the prefix's, extra bytes of reading a prompt, of answering."""
        models, work = self.models, self.work
        dtype = self._compute_dtype(models.llm_dtype)
        params = _as_dtype(models.llm_shapes, dtype)
        model = decode_loop.LanguageModel(models.llm, models.llm_config, dtype)
        sampling = decode_loop.Sampling(work.new_tokens, 0.0, 0, 1.0)
        with self._compiling():
            ids_P = _shape((work.prefix_tokens,), jnp.int32)
            prefix = jax.eval_shape(
                functools.partial(decode_loop.read_prefix, model), params, ids_P
            )
            batch, length = work.num_answers, work.tail_tokens
            tail = (
                decode_loop.Prefix(prefix, work.prefix_tokens),
                _shape((batch, length, models.llm_config.dim), jnp.float32),
                _shape((batch, length), bool),
                _shape((batch,), bool),
                _shape((batch,), jnp.int32),
                0,
                _shape((2,), jnp.int32),
            )
            read = functools.partial(decode_loop.read_tail, model, sampling)
            state = jax.eval_shape(read, params, *tail)
            tail_bytes = program_bytes(decode_loop.read_tail, model, sampling, params, *tail)
            run_bytes = program_bytes(
                decode_loop.run, model, sampling, params, state, tail[-1], work.new_tokens
            )
        cut = jnp.dtype(models.llm_dtype).itemsize / jnp.dtype(dtype).itemsize
        kv = tree_bytes(state)
        return int(kv * cut), int(tree_bytes(prefix) * cut), tail_bytes - int(kv * (1 - cut)), run_bytes

    # ---- shapes -----------------------------------------------------------------------------------

    def _compute_dtype(self, dtype: Any) -> Any:
        """The dtype to compile in: a CPU turns whole bfloat16 models into float32 ones on the way, which
        says nothing about a GPU; its float32 program has the larger activations and no such copies."""
        elsewhere = not self.device.on_cpu and jax.default_backend() == "cpu"
        return jnp.dtype(jnp.float32) if elsewhere else jnp.dtype(dtype)

    def _compiling(self):
        """Compiles for the CPU where that is planned for; else for what is here."""
        if not self.device.on_cpu or jax.default_backend() == "cpu":
            return contextlib.nullcontext()
        return jax.default_device(jax.local_devices(backend="cpu")[0])

    @functools.cached_property
    def _layers(self) -> tuple[int, ...]:
        depth = self.models.encoder_config.num_layers
        return tuple(layer % (depth + 1) for layer in self.config["encoder"]["layers"])

    @property
    def _feature_dim(self) -> int:
        return self.models.encoder_config.dim * len(self._layers)

    @functools.cached_property
    def _one_input(self) -> jax.ShapeDtypeStruct:
        window = round(self.config["encoder"]["window_s"] * SAMPLE_RATE_HZ)
        silence = np.zeros(window, np.float32)
        inputs_S = self.models.encoder.preprocess(self.models.encoder_config, silence, window)
        return _shape(inputs_S.shape, inputs_S.dtype)

    def _inputs(self, batch: int) -> jax.ShapeDtypeStruct:
        return _shape((batch, *self._one_input.shape), self._one_input.dtype)

    @property
    def _window_frames(self) -> int:
        samples = round(self.config["encoder"]["window_s"] * SAMPLE_RATE_HZ)
        return self.models.encoder.num_frames(self.models.encoder_config, samples)

    @property
    def _bucket(self) -> int:
        return batching.bucket_lengths(np.array([self.work.max_frames]), 1)[0]

    def _batch(self, rows: int, leading: tuple[int, ...]) -> Batch:
        shape = lambda *rest, dtype: _shape((*leading, rows, *rest), dtype)  # noqa: E731
        return Batch(
            features_BTE=shape(self._bucket, self._feature_dim, dtype=cache.STORE_DTYPE),
            num_frames_B=shape(dtype=jnp.int32),
            target_ids_BL=shape(self.work.max_targets, dtype=jnp.int32),
            num_targets_B=shape(dtype=jnp.int32),
            weight_B=shape(dtype=jnp.float32),
            index_B=shape(dtype=jnp.int32),
        )

    @functools.cached_property
    def _spec(self) -> step.StepSpec:
        models = self.models
        module, _ = registry.from_section("objectives", self.config["objective"])
        llm = (models.llm, models.llm_config) if "llm" in module.NEEDS else None
        return setup.step_spec(self.config, models.llm_config.dim, 1.0, llm)

    @functools.cached_property
    def _frozen(self) -> Frozen:
        rows, dim = self.work.num_rows, self.models.llm_config.dim
        ids = _shape((rows,), jnp.int32)
        frozen = Frozen(table_VD=_shape((rows, dim), jnp.float32), row_ids_V=ids)
        if self._spec.llm is None:
            return frozen
        return dataclasses.replace(
            frozen,
            llm=self.models.llm_shapes,
            prefix_ids_P=_shape((self.work.prefix_tokens,), jnp.int32),
            suffix_ids_P=_shape((8,), jnp.int32),
            slot_ids_V=ids,
        )

    @functools.cached_property
    def _params(self) -> PyTree:
        """Parameters of projector and objective."""
        frames = np.zeros((1, self._feature_dim), cache.STORE_DTYPE)
        examples = batching.make_examples(["-"], [1], [np.zeros(1, np.int32)], lambda _: frames)
        config = registry.make_config(loop, self.config["train"])

        def init(frozen: Frozen) -> PyTree:
            return loop.init_params(loop.Run(config, self._spec, frozen, examples, None, 0))

        return jax.eval_shape(init, self._frozen)

    @functools.cached_property
    def _state(self) -> step.TrainState:
        train = registry.make_config(loop, self.config["train"])
        parts = partition(self._params, train.trainable, train.fixed)
        return jax.eval_shape(lambda t, f: step.init_state(self._spec, t, f, 0), *parts)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _as_dtype(shapes: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda s: _shape(s.shape, dtype), shapes)
