"""Several short runs as one program: seeds and learning rates side by side on a leading axis.

A sweep's points often differ by nothing else. Trained one by one each waits for its own compilation and
fills a large device badly; as lanes of one vmapped step they compile once and share its launches. A lane
takes the steps that its run would take alone, up to rounding (`min_risk` draws its readings by it): its
own parameters, order, augmentation and dropout. Lanes of several seeds dispatch shorter groups, so they
may be validated a few steps earlier. They keep no checkpoints, so they are for runs of minutes.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax.data import batching
from tiny_align_jax.train import loop
from tiny_align_jax.train import step as step_lib
from tiny_align_jax.train.logs import RunLog
from tiny_align_jax.types import ConfigError, NonFiniteLossError, PyTree


@dataclasses.dataclass(frozen=True)
class Lane:
    """One of the runs.

    Attributes:
        run: equal to the other lanes' in all but its seed.
        state: at step 0.
        rate: its learning rate, relative to that of the optimizer in `run.spec`.
        workdir: for its log.
    """

    run: loop.Run
    state: step_lib.TrainState
    rate: float
    workdir: str | os.PathLike


@dataclasses.dataclass(frozen=True)
class _Seconds:
    """Of all lanes together, as in `loop.Result`."""

    train: float
    compile: float
    input: float
    first_group_at: float


def fit(lanes: Sequence[Lane]) -> list[loop.Result | NonFiniteLossError]:
    """Trains all lanes; a lane whose loss is not finite ends in its error, the others go on.

    Returns:
        A result a lane; its seconds are those of all lanes together.

    Raises:
        ConfigError: seeds differ, so that lanes see batches in different orders, but batches have more
            than one padded length; a run that may stop before its last step.
    """
    run = lanes[0].run
    if run.config.patience or run.config.max_train_s:
        raise ConfigError(
            f"lanes end together, but train.patience={run.config.patience} and "
            f"train.max_train_s={run.config.max_train_s:g} may stop one of them; set both to 0"
        )
    config, seeds = run.config, [lane.run.seed for lane in lanes]
    buckets = batching.bucket_lengths(run.examples.num_frames_N, config.num_buckets)
    if len(set(seeds)) > 1 and len(buckets) > 1:
        raise ConfigError(
            f"lanes with different seeds need batches of one length, but there are {len(buckets)} "
            "buckets; set train.num_buckets=1"
        )
    with contextlib.ExitStack() as stack:
        books = [_Book(lane, config.num_steps, stack) for lane in lanes]
        states, seconds = _train(lanes, buckets, books)
    return [book.result(lane_of(states, i), seconds) for i, book in enumerate(books)]


def _train(
    lanes: Sequence[Lane], buckets: tuple[int, ...], books: "list[_Book]"
) -> tuple[step_lib.TrainState, _Seconds]:
    """States after the last step, and the time that they took."""
    run, config = lanes[0].run, lanes[0].run.config
    corpus = loop.resident_corpus(run.examples, buckets[-1])
    orders = [
        batching.schedule(
            run.examples, config.batch_size, buckets, config.steps_per_dispatch, lane.run.seed
        )
        for lane in lanes
    ]
    frozen = jax.tree.map(jnp.asarray, run.frozen)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(lane.state for lane in lanes))
    rate_N = jnp.asarray([lane.rate for lane in lanes], jnp.float32)
    steps = _Compiled(step_lib.make_lane_steps(run.spec))
    clock = loop.Stopwatch()
    done, validate_s, first_group_at_s, start_s = 0, 0.0, 0.0, time.monotonic()
    logging.info("%d lanes over %d utterances", len(lanes), len(run.examples))
    if not config.num_steps:  # nothing to train, but to compare with
        for i, book in enumerate(books):
            book.validate(lane_of(states, i), 0, 0.0)
    together = _in_step(orders, config.num_steps)
    while done < config.num_steps:
        with clock:
            groups = next(together)
            rows = [loop.pad_group(group, loop.dispatch_steps(run)) for group in groups]
            index_NKB, weight_NKB = (np.stack(parts) for parts in zip(*rows, strict=True))
        previous, done = done, done + len(groups[0].index_KB)
        args = (states, frozen, corpus, index_NKB, weight_NKB, rate_N, done - previous)
        states, metrics = steps(args, groups[0].max_frames)
        host = jax.tree.map(np.asarray, metrics)
        first_group_at_s = first_group_at_s or time.time()
        for i, book in enumerate(books):
            book.log(groups[i], {name: values[i] for name, values in host.items()})
        if loop.crossed(previous, done, config.validate_every) or done == config.num_steps:
            before_s = time.monotonic()
            train_s = before_s - start_s - validate_s - steps.compile_s
            for i, book in enumerate(books):
                book.validate(lane_of(states, i), done, train_s)
            validate_s += time.monotonic() - before_s
    train_s = time.monotonic() - start_s - validate_s - steps.compile_s
    return states, _Seconds(train_s, steps.compile_s, clock.seconds, first_group_at_s)


def _in_step(
    orders: Sequence[Iterator[batching.Group]], num_steps: int
) -> Iterator[list[batching.Group]]:
    """A group of every lane, all of as many steps; `num_steps` in all.

    Each seed puts the short group of an epoch somewhere else; the longer ones beside it are cut, and
    their rest comes next.
    """
    waiting = [next(order) for order in orders]
    while num_steps > 0:
        count = min(num_steps, *(len(group.index_KB) for group in waiting))
        yield [batching.steps_of(group, 0, count) for group in waiting]
        num_steps -= count
        rests = [batching.steps_of(group, count) for group in waiting]
        pairs = zip(rests, orders, strict=True)
        waiting = [rest if len(rest.index_KB) else next(order) for rest, order in pairs]


def lane_of(states: step_lib.TrainState, index: int) -> Any:
    """The state of one lane."""
    return jax.tree.map(lambda leaf: leaf[index], states)


class _Compiled:
    """The lanes' program, compiled once a padded length and timed apart."""

    def __init__(self, steps):
        self._steps, self._programs, self.compile_s = steps, {}, 0.0

    def __call__(self, args: tuple, max_frames: int) -> tuple[step_lib.TrainState, PyTree]:
        if max_frames not in self._programs:
            start_s = time.monotonic()
            lowered = self._steps.lower(*args, max_frames=max_frames)
            self._programs[max_frames] = lowered.compile()
            self.compile_s += time.monotonic() - start_s
        return self._programs[max_frames](*args)


class _Book:
    """Log, last validation and error of one lane."""

    def __init__(self, lane: Lane, num_steps: int, stack: contextlib.ExitStack):
        self._run, self._num_steps = lane.run, num_steps
        self._validation: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._error: NonFiniteLossError | None = None
        self._log = stack.enter_context(RunLog(lane.workdir, 0, num_steps, progress=False))

    def log(self, group: batching.Group, metrics: dict[str, np.ndarray]) -> None:
        if self._error is not None:
            return
        try:
            loop.log_group(self._run, self._log, group, metrics)
        except NonFiniteLossError as error:
            self._error = error

    def validate(self, state: step_lib.TrainState, done: int, train_s: float) -> None:
        if self._error is None:
            self._log.write(done, {"train_s": train_s})
            self._validation, _ = loop.validate_now(self._run, state, self._log, done)
            self._best = loop.better(self._best, self._validation, done, train_s)

    def result(
        self, state: step_lib.TrainState, seconds: _Seconds
    ) -> loop.Result | NonFiniteLossError:
        if self._error is not None:
            return self._error
        params = loop.export_params(self._run.config, state)
        return loop.Result(
            params=params,
            step=self._num_steps,
            first_step=0,
            train_s=seconds.train,
            compile_s=seconds.compile,
            validation=self._validation,
            finished=True,
            best=self._best,
            first_group_at_s=seconds.first_group_at,
            input_s=seconds.input,
        )
