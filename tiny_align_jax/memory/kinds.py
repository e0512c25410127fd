"""The stages by name, and what each of them grows with: a batch and a length."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from tiny_align_jax import decode
from tiny_align_jax.adapt import fit
from tiny_align_jax.memory import stages, user_stage
from tiny_align_jax.memory.budget import Config, Stage
from tiny_align_jax.memory.shapes import Shapes
from tiny_align_jax.types import SAMPLE_RATE_HZ

_LENGTH_STEP_S = 0.64  # 32 frames of Whisper: what lengths are padded to
_LONGEST_S = 30.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """Something that a stage's size grows with.

    Attributes:
        describe: a value in the words of a config.
        start: the planned value.
        limit: the largest of interest.
        changed: shapes with another value.
    """

    describe: Callable[[int], str]
    start: Callable[[Shapes], int]
    limit: Callable[[Shapes], int]
    changed: Callable[[Shapes, int], Shapes]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A stage by its title in tables.

    Attributes:
        title: name of the `Stage`s it builds.
        build: makes one.
        batch, length: what its size grows with.
        adapt: shapes as this stage uses them.
        remedies: changes that cost no quality, in words, tried first where it does not fit.
    """

    title: str
    build: Callable[[Shapes, Config], Stage]
    batch: Setting
    length: Setting
    adapt: Callable[[Shapes], Shapes] = lambda shapes: shapes
    remedies: tuple[tuple[str, Callable[[Shapes], Shapes]], ...] = ()


def with_section(shapes: Shapes, section: str, **values: Any) -> Shapes:
    """The same with other values in one section of the config."""
    config = {**shapes.config, section: {**shapes.config[section], **values}}
    return dataclasses.replace(shapes, config=config)


def with_work(shapes: Shapes, **values: Any) -> Shapes:
    """The same for other data or prompts."""
    return dataclasses.replace(shapes, work=dataclasses.replace(shapes.work, **values))


def _frames(shapes: Shapes, seconds: float) -> int:
    samples = round(seconds * SAMPLE_RATE_HZ)
    return shapes.encoder.family.num_frames(shapes.encoder.config, samples)


def _personalize(shapes: Shapes) -> Mapping[str, Any]:
    return shapes.config.get("personalize", {})


def _with_user_batch(shapes: Shapes, size: int) -> Shapes:
    sections = _personalize(shapes)
    changed = {**sections, "fit": {**sections.get("fit", {}), "batch_size": size}}
    return dataclasses.replace(shapes, config={**shapes.config, "personalize": changed})


def _many(shapes: Shapes) -> Shapes:
    """Evaluation: full batches, or all that there are."""
    buckets = decode.Config().batch_buckets
    batch = next((n for n in buckets if n >= shapes.work.num_test), buckets[-1])
    recordings = shapes.config["features"]["batch_size"]
    return with_work(shapes, num_answers=batch, num_recordings=recordings)


_ENCODER_BATCH = Setting(
    "features.batch_size={}".format,
    lambda shapes: shapes.config["features"]["batch_size"],
    lambda shapes: 256,
    lambda shapes, n: with_section(shapes, "features", batch_size=n),
)
_WINDOW = Setting(
    lambda n: f"encoder.window_s={n * _LENGTH_STEP_S:.2f}",
    lambda shapes: round(shapes.config["encoder"]["window_s"] / _LENGTH_STEP_S),
    lambda shapes: int(_LONGEST_S / _LENGTH_STEP_S),
    lambda shapes, n: with_section(shapes, "encoder", window_s=n * _LENGTH_STEP_S),
)
_TRAIN_BATCH = Setting(
    "train.batch_size={}".format,
    lambda shapes: shapes.train.batch_size,
    lambda shapes: min(shapes.work.num_utterances, 1024),
    lambda shapes, n: with_section(shapes, "train", batch_size=n),
)
_USER_BATCH = Setting(
    "fit.batch_size={}".format,
    lambda shapes: _personalize(shapes).get("fit", {}).get("batch_size", fit.Config().batch_size),
    lambda shapes: user_stage.NUM_UTTERANCES,
    lambda shapes, n: _with_user_batch(shapes, n),
)
_UTTERANCE_LENGTH = Setting(
    lambda n: f"utterances of at most {n * _LENGTH_STEP_S:.2f} s",
    lambda shapes: max(shapes.work.max_frames // _frames(shapes, _LENGTH_STEP_S), 1),
    lambda shapes: int(_LONGEST_S / _LENGTH_STEP_S),
    lambda shapes, n: with_work(shapes, max_frames=_frames(shapes, n * _LENGTH_STEP_S)),
)
_RECORDINGS = dataclasses.replace(
    _ENCODER_BATCH,
    start=lambda shapes: shapes.work.num_recordings,
    changed=lambda shapes, n: with_work(shapes, num_recordings=n),
)
_ANSWERS = Setting(
    "batches of {} answers".format,
    lambda shapes: shapes.work.num_answers,
    lambda shapes: 64,
    lambda shapes, n: with_work(shapes, num_answers=n),
)
_ANSWER_LENGTH = Setting(
    "answers of at most {} tokens".format,
    lambda shapes: shapes.work.new_tokens,
    lambda shapes: 8192,
    lambda shapes, n: with_work(shapes, new_tokens=n),
)
_STREAMED = (
    "train.resident='never'",
    lambda shapes: with_section(shapes, "train", resident="never"),
)
STAGES = {
    kind.title.partition(" ")[0]: kind
    for kind in (
        Kind("features of a corpus", stages.features, _ENCODER_BATCH, _WINDOW),
        Kind("training", stages.training, _TRAIN_BATCH, _UTTERANCE_LENGTH, remedies=(_STREAMED,)),
        Kind("personalisation", user_stage.personalisation, _USER_BATCH, _UTTERANCE_LENGTH),
        Kind("reading", stages.reading, _RECORDINGS, _WINDOW),
        Kind("generation", stages.generation, _ANSWERS, _ANSWER_LENGTH),
        Kind(
            "evaluation",
            functools.partial(stages.generation, name="evaluation"),
            _ANSWERS,
            _ANSWER_LENGTH,
            adapt=_many,
        ),
    )
}
