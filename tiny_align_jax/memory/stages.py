"""The stages of a run as lists of parts: what each holds, when, and what its programs take.

Temporaries come from compiling the very programs that a stage runs, for shapes alone: no weights are
read and nothing runs. What shapes cannot tell, the process itself, is measured and stands here as
constants.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import decode_loop, joined
from tiny_align_jax.features import cache, pipeline, writer
from tiny_align_jax.memory.budget import Config, Part, Stage
from tiny_align_jax.memory.shapes import Shapes, shape
from tiny_align_jax.train import setup, step
from tiny_align_jax.types import Frozen, PyTree

# Resident memory of a process that has imported everything and computed 1 + 1 (the GPU's: H100, JAX 0.11.2, 800 and 804
# MB), and what compiling adds to it for good: 50 to 210 MB in a CPU's stages, on a GPU the first programs, that load weights.
PROCESS_BYTES = {"cpu": 270_000_000, "gpu": 800_000_000}
COMPILER_BYTES = {"cpu": 85_000_000, "gpu": 200_000_000}
# Of a GPU's process: pages of CUDA's libraries, which the system takes back when memory is short.
LIBRARY_PAGES_BYTES = 490_000_000
# What compiling a stage's own programs adds on a GPU (XLA's heap, pages of cuBLAS and of the PTX compiler); fitted to
# the twelve stages of docs/edge.md, and not yet confirmed on others.
PROGRAMS_BYTES = {
    "features": 100_000_000,
    "training": 1_100_000_000,
    "personalisation": 640_000_000,
    "reading": 630_000_000,
    "generation": 630_000_000,
    "evaluation": 825_000_000,
}
# The GPU allocator hands out up to 128 MiB more than was asked for, and XLA tries kernels on buffers with guard zones:
# together up to 164 MB in 13 of 17 stages measured on an H100 and an H200. Fitted to them, too. Convolutions of encoders that
# read waveforms are tried with far larger workspaces (1.3 GB on the H200, 0.5 on the H100): that is not planned.
UNASKED_BYTES = 80_000_000
# One region of the pool of pinned memory that all transfers to a GPU pass (`placing`).
PINNED_BYTES = 128 << 20
# A tokenizer of 49k entries takes 60 MB of Python objects, one of 262k 420 MB.
TOKENIZER_BYTES_A_TOKEN = 1_480
VALIDATION_BATCH = 32  # of `setup.make_validation`
HEARD_BATCH = 16  # of `evaluate.Config`


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled function takes beyond its arguments; donated arguments become outputs."""

    temporary_bytes: int
    new_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.temporary_bytes + self.new_bytes


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Compiles for the device that is planned for, as far as this machine can."""

    device: Config

    def __call__(self, jitted: Any, *args: Any, **kwargs: Any) -> Program:
        """Compiles for shapes (`jax.ShapeDtypeStruct`); nothing runs."""
        with self._target():
            stats = jitted.lower(*args, **kwargs).compile().memory_analysis()
        new = stats.output_size_in_bytes - stats.alias_size_in_bytes
        return Program(stats.temp_size_in_bytes, new)

    def dtype(self, wanted: Any) -> Any:
        """The dtype to compile in.

        A CPU keeps float32 copies of whole bfloat16 models while it computes; a GPU does not. Planning
        for a GPU without one, the float32 program stands in: its activations are the larger.
        """
        return jnp.dtype(jnp.float32 if self.stands_in else wanted)

    @property
    def stands_in(self) -> bool:
        """Whether this machine's CPU stands in for a GPU that is planned for."""
        return not self.device.on_cpu and jax.default_backend() == "cpu"

    def _target(self):
        if self.device.on_cpu and jax.default_backend() != "cpu":
            return jax.default_device(jax.local_devices(backend="cpu")[0])
        return contextlib.nullcontext()


def features(shapes: Shapes, device: Config) -> Stage:
    """The frozen encoder over a corpus, frames to the cache."""
    batch = shapes.config["features"]["batch_size"]
    audio = tree_bytes(shapes.inputs(batch))
    frames = tree_bytes(shapes.frames(batch, shapes.window_frames))
    ahead = shapes.work.num_workers * pipeline.AHEAD * tree_bytes(shapes.inputs(1))
    parts = (
        *process(device),
        *weights("encoder", shapes.encoder_params, device),
        Part("audio of two batches", 2 * audio, 2 * audio),
        Part("frames of the batch before", frames, 2 * frames),
        Part("audio decoded ahead", 0, ahead),
        Part("frames not yet written", 0, min(2 * writer.SHARD_BYTES, _corpus_bytes(shapes))),
        encoding(shapes, device, batch),
        *programs("features", device, "encode"),
    )
    window_s = shapes.config["encoder"]["window_s"]
    return Stage("features of a corpus", f"batch {batch}, window {window_s} s", parts)


def training(shapes: Shapes, device: Config) -> Stage:
    """Training on cached features."""
    state, frozen, work = shapes.state, shapes.training_frozen, shapes.work
    batch = min(shapes.train.batch_size, work.num_utterances)
    corpus_parts, steps, args, static = _corpus(shapes, batch)
    program = Compiler(device)(steps, state, frozen, *args, **static)
    parts = [
        *process(device, shapes.llm.config.vocab_size),
        Part("projector and objective", tree_bytes((state.trainable, state.fixed))),
        Part("optimizer", tree_bytes(state.opt_state)),
        Part("running average", tree_bytes(state.average)),
        *table_rows(shapes, device),
        Part("the objective's constants", tree_bytes(frozen.constants)),
        *corpus_parts,
        Part("training step: temporaries", program.num_bytes, 0, "train"),
        *programs("training", device, "train"),
    ]
    if frozen.llm is not None:
        parts += _sent_weights("LLM", frozen.llm, device)
    elif work.validates:
        parts.append(hearing(shapes, device, VALIDATION_BATCH, "validate", frozen))
    if shapes.scored_llm is not None:
        size = tree_bytes(shapes.scored_llm.params("llms", jnp.float32))
        host = 0 if device.on_cpu else size
        parts.append(Part("the whole LLM", size, host, "choose layers to drop"))
    parts = [part for part in parts if part.device_bytes or part.host_bytes]
    setting = f"{work.num_utterances} utterances, batch {batch}, {shapes.bucket_frames} frames"
    return Stage("training", setting, tuple(parts))


def reading(shapes: Shapes, device: Config) -> Stage:
    """A corpus heard without the LLM: encoder, then projector."""
    recordings, state = shapes.work.num_recordings, shapes.state
    parts = (
        *process(device, shapes.llm.config.vocab_size),
        *weights("encoder", shapes.encoder_params, device),
        Part("projector and objective", tree_bytes((state.trainable, state.fixed))),
        *table_rows(shapes, device),
        encoding(shapes, device, recordings),
        hearing(shapes, device, HEARD_BATCH, "hear"),
        *programs("reading", device, "hear"),
    )
    setting = f"batches of {recordings} and {HEARD_BATCH}, {shapes.bucket_frames} frames"
    return Stage("reading", setting, parts)


def generation(shapes: Shapes, device: Config, name: str = "generation") -> Stage:
    """Recordings heard and answered: encoder, projector, LLM and KV cache in one process."""
    work, compiler = shapes.work, Compiler(device)
    dtype = compiler.dtype(shapes.llm.dtype)
    model = shapes.language_model(dtype)
    params = _for_decoding(shapes.llm.params("llms", dtype), device)
    prompt, answers = shapes.prompt(dtype), shapes.answers(dtype)
    read = compiler(decode_loop.read_tail, model, shapes.sampling, params, *prompt)
    run = compiler(
        decode_loop.run, model, shapes.sampling, params, answers, prompt[-1], work.new_tokens
    )
    kv = tree_bytes(shapes.answers(shapes.llm.dtype))
    several = 1 < work.num_answers < work.num_test
    state = shapes.state
    parts = (
        *process(device, shapes.llm.config.vocab_size),
        *_answering_weights(shapes.llm_params, device),
        *weights("encoder", shapes.encoder_params, device),
        Part("projector and objective", tree_bytes((state.trainable, state.fixed))),
        *table_rows(shapes, device),
        Part("KV cache, shared part", tree_bytes(shapes.prompt(shapes.llm.dtype)[0])),
        encoding(shapes, device, work.num_recordings),
        hearing(shapes, device, min(work.num_answers, HEARD_BATCH), "hear"),
        # While a prompt is read, the answers of the batch before are still held.
        Part("KV cache", 2 * kv if several else kv, 0, "read the prompt"),
        Part("LLM: temporaries", read.temporary_bytes, 0, "read the prompt"),
        Part("KV cache", kv, 0, "answer"),
        Part("LLM: temporaries", run.num_bytes, 0, "answer"),
        *programs(name, device, "answer"),
    )
    length = work.prefix_tokens + work.tail_tokens + work.new_tokens
    return Stage(name, f"batch {work.num_answers}, {length} tokens", parts)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def process(device: Config, vocab_size: int = 0) -> list[Part]:
    """The process itself, with the tokenizer of an LLM if it is needed."""
    platform = "cpu" if device.on_cpu else "gpu"
    parts = [
        Part("Python, JAX and libraries", 0, PROCESS_BYTES[platform]),
        Part("compiler", 0, COMPILER_BYTES[platform]),
    ]
    if not device.on_cpu:
        parts[0] = Part(parts[0].name, 0, PROCESS_BYTES[platform] - LIBRARY_PAGES_BYTES)
        parts.append(Part("libraries, mapped", 0, LIBRARY_PAGES_BYTES, reclaimable=True))
        parts.append(Part("transfers, pinned", 0, PINNED_BYTES))
        parts.append(Part("blocks larger than asked for", UNASKED_BYTES))
    if vocab_size:
        num_bytes = TOKENIZER_BYTES_A_TOKEN * vocab_size
        parts.append(Part("tokenizer", 0, num_bytes))
    return parts


def programs(stage: str, device: Config, moment: str) -> list[Part]:
    """What compiling the programs of a stage leaves on a GPU's host, there when the last has been compiled."""
    return [] if device.on_cpu else [Part("compiled programs", 0, PROGRAMS_BYTES[stage], moment)]


def table_rows(shapes: Shapes, device: Config) -> list[Part]:
    """Rows of the LLM's table; those that are sent to a GPU were read before anything else."""
    size = tree_bytes(shapes.table)
    parts = [Part("table rows", size)]
    if not device.on_cpu:
        parts.append(Part("table rows, as read", 0, size, "read the table"))
    return parts


def weights(name: str, params: PyTree, device: Config, moment: str = "") -> list[Part]:
    """Weights, and their copy on the way: an accelerator gets one, a CPU uses what was read."""
    size = tree_bytes(params)
    return [
        Part(name, size, 0, moment),
        Part(f"{name}, as read", 0, 0 if device.on_cpu else size, f"load {name}"),
    ]


def _sent_weights(name: str, params: PyTree, device: Config) -> list[Part]:
    """Weights of which an accelerator gets one matrix after the other."""
    largest = 0 if device.on_cpu else max(tree_bytes(leaf) for leaf in jax.tree.leaves(params))
    parts = [Part(name, tree_bytes(params))]
    return [*parts, Part(f"{name}, as read", 0, largest, f"load {name}")] if largest else parts


def _for_decoding(params: PyTree, device: Config) -> PyTree:
    return params if device.on_cpu else joined.shapes_for_decoding(params)


def _answering_weights(params: PyTree, device: Config) -> list[Part]:
    """The LLM of an `aligner`: an accelerator gets what is joined when all is read, the rest matrix by matrix.

    While matrices are joined (`joined.join`), it holds a layer of one matrix twice.
    """
    parts = [Part("LLM", tree_bytes(params))]
    if device.on_cpu:
        return parts
    waiting, sent = joined.loaded_bytes(params)
    twice = joined.part_bytes(params)
    return [*parts, Part("LLM, as read", twice, waiting + sent, "load LLM")]


def _corpus(shapes: Shapes, batch: int) -> tuple[list[Part], Callable, tuple, dict[str, int]]:
    """Parts of the training data; the program that reads it; its arguments behind the frozen ones."""
    work, train = shapes.work, shapes.train
    itemsize = cache.STORE_DTYPE.itemsize
    padded = work.num_utterances * shapes.feature_dim * shapes.bucket_frames * itemsize
    mapped = Part("feature cache, mapped", 0, _corpus_bytes(shapes), reclaimable=True)
    fits = padded <= train.resident_bytes
    steps = train.steps_per_dispatch
    if train.resident == "always" or (train.resident == "auto" and fits):
        corpus = shapes.batch(work.num_utterances)
        size = tree_bytes(corpus)
        parts = [Part("corpus", size), Part("corpus, as gathered", 0, size, "gather"), mapped]
        rows = shape((steps, batch), jnp.int32), shape((steps, batch), jnp.float32)
        static = {"max_frames": shapes.bucket_frames}
        return parts, step.make_resident_steps(shapes.spec), (corpus, *rows, steps), static
    group = shapes.batch(batch, (steps,))
    size = 2 * tree_bytes(group)
    parts = [Part("two groups of batches", size, size), mapped]
    return parts, step.make_stream_steps(shapes.spec), (group,), {}


def _corpus_bytes(shapes: Shapes) -> int:
    """Frames of the corpus in the cache."""
    work = shapes.work
    return tree_bytes(shapes.frames(1, work.mean_frames)) * work.num_utterances


def encoding(shapes: Shapes, device: Config, batch: int) -> Part:
    """What the encoder takes while it runs, beside its weights."""
    compiler = Compiler(device)
    dtype = compiler.dtype(shapes.encoder.dtype)
    encoder = shapes.encoder.family.Encoder(shapes.encoder.config, dtype)
    params = shapes.encoder.params("encoders", dtype)
    program = compiler(pipeline.encode, encoder, shapes.layers, params, *shapes.inputs(batch))
    return Part("encoder: temporaries", program.num_bytes, 0, "encode")


def hearing(
    shapes: Shapes, device: Config, batch: int, moment: str, frozen: Frozen | None = None
) -> Part:
    """What projector and objective take to read a batch; `frozen`: while they are trained."""
    frames = shapes.frames(batch, shapes.bucket_frames)
    num_frames = shape((batch,), jnp.int32)
    reader = setup.make_reader(shapes.spec)
    program = Compiler(device)(reader, shapes.params, frozen or shapes.table, frames, num_frames)
    size = program.num_bytes + tree_bytes(frames)
    return Part("reading: temporaries", size, tree_bytes(frames), moment)
