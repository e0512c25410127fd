"""The study of personalisation: every method on simulated users, then the chosen few on test users.

Simulated users are speakers held out of the training of a base of their own; methods, learning
rates, numbers of steps and weights are chosen on them. Test users are scored once with what was chosen.
All users, folds and seeds of a method are adapted in one run (`fit.run`); methods that train parts of
the same tree share one compiled program and differ in which rates are zero.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.adapt import crew as crew_lib
from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.adapt import fit, recipe, spread, study_scores, word_prior
from tiny_align_jax.adapt.crew import Crew, Plan
from tiny_align_jax.types import Array, PyTree

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of one method.

    Attributes:
        name: of the method.
        method: what a copy differs in.
        learning_rate: of Adam.
        replay_weight: share of the replayed utterances in the loss.
        decay: towards the base.
        checkpoint: where to stop; 0 for at the last.
        tolerance: a copy whose validation loss rose by a larger share is not kept.
        copies: of different seeds whose mean is the user's; 1 for just one.
    """

    name: str
    method: delta_lib.Method
    learning_rate: float
    replay_weight: float = 0.5
    decay: float = 0.0
    checkpoint: int = 0
    tolerance: float = 0.0
    copies: int = 1

    def __str__(self) -> str:
        parts = [self.name, f"lr {self.learning_rate:g}", f"replay {self.replay_weight:g}"]
        return ", ".join([*parts, f"decay {self.decay:g}"] if self.decay else parts)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of all jobs of a point.

    Attributes:
        errors_CJN: word errors of each test utterance at each checkpoint, the base first.
        valid_loss_JC: validation loss at each checkpoint.
        delta: of every job after the last step, on the device, or on the host if several made it.
        spec: of the program that made them.
        seconds: wall time of the run, compilation included where it was the first.
    """

    errors_CJN: np.ndarray
    valid_loss_JC: np.ndarray
    delta: delta_lib.Delta
    spec: fit.Spec
    seconds: float

    def stopped(self) -> np.ndarray:
        """Word errors where each copy stops at its best validation loss, [J, N]."""
        best_J = np.argmin(self.valid_loss_JC, axis=1)
        return self.errors_CJN[best_J, np.arange(len(best_J))]

    def of_seed(self, seed: int, count: int) -> "Outcome":
        """Jobs of one of `count` seeds, which stand innermost."""
        return self.rows(np.arange(seed, self.errors_CJN.shape[1], count))

    def rows(self, index_J: np.ndarray) -> "Outcome":
        """Some of the jobs."""
        return dataclasses.replace(
            self,
            errors_CJN=self.errors_CJN[:, index_J],
            valid_loss_JC=self.valid_loss_JC[index_J],
            delta=jax.tree.map(lambda x: x[index_J], self.delta),
        )

    def guarded(self, deciding: "Outcome", tolerance: float = 0.0) -> "Outcome":
        """With the base instead of every copy whose validation loss did not fall in `deciding`.

        With a tolerance: that rose by a larger share. Three utterances say little of one user: their loss hardly
        goes with the word errors of others (docs/personalization.md).
        """
        loss_JC = deciding.valid_loss_JC
        keep_J = loss_JC[:, -1] < recipe.most_loss(loss_JC[:, 0], tolerance)
        errors = np.where(keep_J[None, :, None], self.errors_CJN, self.errors_CJN[:1])
        delta = {
            name: value * keep_J.reshape(-1, *[1] * (value.ndim - 1)).astype(np.float32)
            for name, value in self.delta.items()
        }
        return dataclasses.replace(self, errors_CJN=errors, delta=delta)


class Lab:
    """Users, a base and the programs that were compiled for them."""

    def __init__(
        self,
        crew: Crew,
        replay: fit.Corpus,
        config: fit.Config,
        audio: tuple[fit.Corpus, fit.Corpus] | None = None,
        dtype: Any = jnp.float32,
    ):
        """Args: users; replayed utterances; sizes of runs; encoder inputs of both; compute dtype."""
        self.crew, self._replay, self._config, self._audio = crew, replay, config, audio
        self._dtype = dtype
        base = crew.base
        self.params = {name: base.params[name] for name in ("projector", "objective")}
        self.ear = dataclasses.replace(base.ear, projector=base.ear.projector.clone(dtype=dtype))
        self._with_encoder: dict[str, Any] | None = None

    def references(self, plan: Plan) -> list[list[str]]:
        """True texts of each job's test utterances."""
        return [[u.text for u in crew_lib.tested(self.crew, plan, j)] for j in range(len(plan))]

    def texts(self, readings_JNA: Array) -> list[list[str]]:
        """Readings as text."""
        decode = self.crew.base.vocabulary.decode
        return [[decode(row[row >= 0]) for row in rows] for rows in readings_JNA]

    def run(self, point: Point, points: Sequence[Point], plan: Plan) -> Outcome:
        """Adapts all jobs of a plan.

        Args:
            point: what to run.
            points: all points of the study; those that fit one program share it.
            plan: jobs.
        """
        began_s = time.monotonic()
        method = shared_method(point.method, [p.method for p in points])
        sizes = self._sizes(method)
        spec, params, corpus, replay = self.program(method, sizes)
        jobs = crew_lib.jobs_of(self.crew, plan)
        settings = fit.Settings(
            jnp.float32(point.learning_rate),
            jnp.float32(point.decay),
            jnp.float32(point.replay_weight),
            self._rates(point.method, method, params),
            jnp.int32((point.checkpoint or sizes.num_checkpoints) * sizes.steps_per_checkpoint),
        )
        frozen = self.crew.base.frozen
        parts = [
            spread.run(spec, params, frozen, corpus, replay, part, settings)
            for part in _by_seeds(plan, jobs)
        ]
        trace = _joined(parts)
        readings = np.asarray(trace.readings_JCSA[:, :, : plan.num_test])
        seconds = time.monotonic() - began_s
        references = self.references(plan)
        errors = [
            study_scores.errors_of(references, self.texts(readings[:, c]))
            for c in range(readings.shape[1])
        ]
        return Outcome(
            np.stack(errors), np.asarray(trace.valid_loss_JC), trace.delta, spec, seconds
        )

    def hear(
        self,
        plan: Plan,
        outcome: Outcome | None = None,
        prior: word_prior.Config | None = None,
    ) -> fit.Heard:
        """What copies (None: the base) hear in the test utterances, with a word prior if one is given."""
        spec = outcome.spec if outcome else fit.Spec(self.ear, _SHIFT, self._config)
        spec, params, corpus, _ = self.program(spec.method, spec.config)
        plain = outcome is None and prior is None
        jobs = (
            crew_lib.base_jobs(self.crew, plan)
            if plain
            else crew_lib.jobs_of(self.crew, plan, prior)
        )
        jobs = dataclasses.replace(jobs, rows_JS=jobs.rows_JS[:, : plan.num_test])
        delta = outcome.delta if outcome else self._no_shift(len(plan))
        frozen = self.crew.base.frozen
        parts = [
            jax.device_get(fit.hear(spec, params, frozen, corpus, *part))
            for part in _by_seeds(plan, (jobs, delta))
        ]
        return _joined(parts)

    def mean_of_seeds(self, once: Plan, outcome: Outcome) -> Outcome:
        """The mean copy of every user and fold; its errors are known at the last checkpoint alone.

        Args:
            once: jobs of one seed.
            outcome: of the same jobs with several.
        """
        count = outcome.errors_CJN.shape[1] // len(once)
        seeds = [outcome.of_seed(i, count) for i in range(count)]
        delta = delta_lib.mean([o.delta for o in seeds])
        mean = dataclasses.replace(seeds[0], delta=delta)
        errors_JN = self.errors(once, self.hear(once, mean))
        return dataclasses.replace(mean, errors_CJN=np.stack([seeds[0].errors_CJN[0], errors_JN]))

    def errors(self, plan: Plan, heard: fit.Heard) -> np.ndarray:
        """Word errors of greedy readings, [J, N]."""
        return study_scores.errors_of(self.references(plan), self.texts(heard.readings_JSA))

    def program(self, method: delta_lib.Method, sizes: fit.Config):
        """What a method's runs share: spec, the base's tree, the users' corpus and the replay."""
        if not method.needs_encoder:
            return fit.Spec(self.ear, method, sizes), self.params, self.crew.corpus, self._replay
        if self._audio is None:
            raise ValueError("this lab has no audio for methods that reach into the encoder")
        spec, params = recipe.make_spec(self.crew.base, method, sizes, self._dtype)
        if self._with_encoder is None:
            self._with_encoder = jax.device_put(params)
        spec = dataclasses.replace(spec, ear=self.ear)
        return spec, self._with_encoder, *self._audio

    def _sizes(self, method: delta_lib.Method) -> fit.Config:
        """Smaller where the encoder is part of the step: a row of it keeps 40 MB a layer for the gradient."""
        c = self._config
        if not method.needs_encoder:
            return c
        return dataclasses.replace(
            c,
            jobs_at_once=max(1, c.jobs_at_once // 4),
            batch_size=max(1, c.batch_size // 2),
            replay_size=max(1, c.replay_size // 2),
        )

    def _rates(self, method: delta_lib.Method, shared: delta_lib.Method, params: PyTree):
        """1 for the arrays that a method trains, 0 for the others of its program."""
        width = self.crew.corpus.inputs.shape[-1]
        make = lambda m: jax.eval_shape(  # noqa: E731
            lambda key: delta_lib.init(m, params, width, key), jax.random.key(0)
        )
        trained = make(method)
        return {name: jnp.float32(name in trained) for name in make(shared)}

    def _no_shift(self, count: int) -> delta_lib.Delta:
        return {"frames:shift": jnp.zeros((count, self.crew.corpus.inputs.shape[-1]))}


_SHIFT = delta_lib.Method(frames="shift")


def _by_seeds(plan: Plan, tree: PyTree) -> list[PyTree]:
    """A tree of rows by job, cut into as many parts as there are seeds: plans of one and of three share programs."""
    count = len(plan) // len(np.unique(plan.seed_J))
    starts = range(0, len(plan), count)
    return [jax.tree.map(lambda x, i=i: x[i : i + count], tree) for i in starts]


def _joined(parts: Sequence[PyTree]) -> PyTree:
    """`_by_seeds` undone, on the device or on the host."""
    if len(parts) == 1:
        return parts[0]
    on_host = isinstance(jax.tree.leaves(parts[0])[0], np.ndarray)
    return jax.tree.map(lambda *x: (np if on_host else jnp).concatenate(x), *parts)


def shared_method(method: delta_lib.Method, all_methods: Sequence[delta_lib.Method]):
    """The method that a program is compiled for: offsets and frames of all that reach as far, or itself.

    Low-rank products stand alone: a factor's rank is a shape.
    """
    if method.low_rank:
        return method
    alike = [m for m in all_methods if not m.low_rank and m.needs_encoder == method.needs_encoder]
    offsets = tuple(dict.fromkeys(p for m in alike for p in m.offsets))
    frames = max((m.frames for m in alike), key=delta_lib.FRAMES.index)
    return delta_lib.Method(offsets=offsets, frames=frames)


def describe(lab: Lab, point: Point, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """A point's row: WER by checkpoint and every job's figures; validated jobs also tell how they would stop."""
    words = study_scores.words_of(lab.references(plan)).sum()
    row = {
        "point": str(point),
        "jobs": len(plan),
        "steps": outcome.spec.config.steps_per_checkpoint,
        "wer_by_checkpoint": [round(float(e.sum() / words), 5) for e in outcome.errors_CJN],
        "seconds": round(outcome.seconds, 2),
        "by_job": by_job(outcome),
    }
    if "valid_loss" in row["by_job"]:
        best_J = np.argmin(outcome.valid_loss_JC, axis=1)
        row |= {
            "wer_early_stop": round(float(outcome.stopped().sum() / words), 5),
            "valid_loss_by_checkpoint": outcome.valid_loss_JC.mean(0).round(4).tolist(),
            "base_kept": round(float((best_J == 0).mean()), 3),
        }
    return row


def by_job(outcome: Outcome) -> dict[str, list[Any]]:
    """Word errors and validation losses of every job by checkpoint: what a rule to stop by is tried on."""
    found = {"errors": outcome.errors_CJN.sum(-1).T.tolist()}
    if np.isfinite(outcome.valid_loss_JC).all():
        found["valid_loss"] = outcome.valid_loss_JC.round(4).tolist()
    return found


def points_of(methods: Mapping[str, Mapping[str, Any]], factors: Sequence[float]) -> list[Point]:
    """Points of config sections by method name: every method at every factor on its learning rate."""
    plans = {name: recipe.of_sections(sections) for name, sections in methods.items()}
    return [
        Point(
            name,
            how.method,
            how.adapt.learning_rate * factor,
            how.adapt.replay_weight,
            how.adapt.decay,
        )
        for factor in factors
        for name, how in plans.items()
        if how.method.trains
    ]
