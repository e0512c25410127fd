"""The stage that adapts a base projector to one user's voice."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.adapt import delta, fit, recipe
from tiny_align_jax.aligner import Ear
from tiny_align_jax.memory.budget import Config, Part, Stage
from tiny_align_jax.memory.shapes import Shapes, shape
from tiny_align_jax.memory.stages import (
    Compiler,
    encoding,
    process,
    programs,
    table_rows,
    tree_bytes,
    weights,
)
from tiny_align_jax.types import PyTree

NUM_UTTERANCES = 14
# What `configs/personalize.py` does unless it is told otherwise.
DEFAULT_METHOD = {"offsets": ("projector/.*(norm/(scale|bias)|/bias)", "objective/.*")}
# What XLA takes while it compiles the adaptation, given back afterwards (`heap`); with the program in the
# cache it is not taken. Measured on a CPU with BridgeFormer's default size.
COMPILING_BYTES = 950_000_000
_RECORDED_AT_ONCE = 7  # of `adapt.user.record`
_JOBS = 1  # one copy at a time


def personalisation(shapes: Shapes, device: Config) -> Stage:
    """`experiments.personalize`: 14 utterances encoded, then a small delta trained beside replay.

    Reads the sections of `configs/personalize.py` under `personalize` of the config, if there.
    """
    method, config, replayed = _how(shapes)
    spec, params = _spec(shapes, method, config)
    corpus = _corpus(shapes, NUM_UTTERANCES, method)
    replay = _corpus(shapes, replayed, method) if config.replay_size and replayed else None
    number = shape((), jnp.float32)
    settings = fit.Settings(number, number, number, stop_step=shape((), jnp.int32))
    arguments = (params, shapes.table, corpus, replay, _jobs(shapes), settings)
    program = Compiler(device)(fit.run, spec, *arguments)
    data = tree_bytes((corpus, replay))
    parts = [
        *process(device, shapes.llm.config.vocab_size),
        Part("projector and objective", tree_bytes(shapes.params)),
        *table_rows(shapes, device),
        Part("the user's utterances and replay", data, data, "adapt"),
        Part("adaptation: temporaries", program.num_bytes, 0, "adapt"),
        *programs("personalisation", device, "adapt"),
        *weights("encoder", shapes.encoder_params, device, moment="" if spec.encoder else "encode"),
    ]
    if device.on_cpu:
        parts.append(Part("compiler at work", 0, COMPILING_BYTES, "compile"))
    if spec.encoder is None:
        parts.append(encoding(shapes, device, _RECORDED_AT_ONCE))
    setting = (
        f"{NUM_UTTERANCES} utterances, batch {config.batch_size}, {shapes.bucket_frames} frames"
    )
    return Stage("personalisation", setting, tuple(parts))


def _how(shapes: Shapes) -> tuple[delta.Method, fit.Config, int]:
    sections = {"method": DEFAULT_METHOD, **shapes.config.get("personalize", {})}
    how = recipe.of_sections(sections)
    replayed = how.adapt.replay_count
    config = dataclasses.replace(
        how.fit,
        replay_size=how.fit.replay_size if replayed else 0,
        jobs_at_once=_JOBS,
        readings=False,
    )
    return how.method, config, replayed


def _spec(shapes: Shapes, method: delta.Method, config: fit.Config) -> tuple[fit.Spec, PyTree]:
    step = shapes.spec
    ear = Ear(step.projector.clone(dtype=jnp.float32), step.objective, step.objective_config)
    params = dict(shapes.params)
    if not method.needs_encoder:
        return fit.Spec(ear, method, config), params
    params["encoder"] = shapes.encoder_params
    encoder = shapes.encoder.family.Encoder(shapes.encoder.config)
    return fit.Spec(ear, method, config, encoder, shapes.layers), params


def _corpus(shapes: Shapes, rows: int, method: delta.Method) -> fit.Corpus:
    ids = functools.partial(shape, dtype=jnp.int32)
    inputs: Any = shapes.frames(rows, shapes.bucket_frames)
    if method.needs_encoder:
        inputs = shapes.inputs(rows)[0]
    return fit.Corpus(inputs, ids((rows,)), ids((rows,)), ids((rows, 16)), ids((rows,)))


def _jobs(shapes: Shapes) -> fit.Jobs:
    rows = functools.partial(shape, (_JOBS, NUM_UTTERANCES))
    key = jax.random.key_data(jax.random.key(0))
    return fit.Jobs(
        rows_JS=rows(jnp.int32),
        train_JS=rows(jnp.float32),
        valid_JS=rows(jnp.float32),
        row_bias_JV=shape((_JOBS, shapes.work.num_rows), jnp.float32),
        key_J=shape((_JOBS, *np.shape(key)), key.dtype),
    )
