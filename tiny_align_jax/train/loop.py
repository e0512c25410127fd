"""The training loop: read it top to bottom.

It knows nothing of encoders, corpora or the LLM: `Run` (built by `train/setup.py`) brings cached
frames, table rows and modules.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax import checks, placing
from tiny_align_jax.data import batching
from tiny_align_jax.train import step as step_lib
from tiny_align_jax.train.ahead import made_ahead
from tiny_align_jax.train.checkpoint import Checkpointer
from tiny_align_jax.train.logs import RunLog
from tiny_align_jax.train.partition import merge
from tiny_align_jax.types import Batch, ConfigError, Frozen, NonFiniteLossError, PyTree

RESIDENT = ("auto", "always", "never")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the loop.

    Attributes:
        init_from: folder with an exported projector to start from; '' starts fresh.
        num_steps: optimizer steps in all; 0 exports the untrained projector, to compare with.
        batch_size: utterances a step.
        num_buckets: length buckets; each compiles once.
        steps_per_dispatch: steps sent to the device at a time (1 on a CPU; a GPU waits for the host
            otherwise); 0 for all steps of an epoch that share a bucket, over a corpus on the device.
        resident: keep the whole training cache on the device: 'always', 'never', or 'auto', which does
            so where it takes less than `resident_bytes`.
        resident_bytes: limit for 'auto'.
        average_decay: of the exponential moving average of parameters that is exported; 0 exports the
            last parameters.
        compute_dtype: of the projector, 'float32' or 'bfloat16'; parameters stay float32.
        trainable: path patterns of the parameters that train.
        fixed: path patterns of those that do not; every parameter must match exactly one of the two.
        log_every: steps between log lines.
        validate_every: steps between validations; 0 for only at the end.
        validate_limit: validate on so many utterances only, drawn by seed 0; 0 for all.
        patience: stop after so many validations in a row without a better WER; 0 for never.
        max_train_s: stop after so many seconds of training, compilation and validation left out; 0 for
            never.
        checkpoint_every: steps between checkpoints; 0 for only at the end.
        keep_checkpoints: how many stay on disk.
    """

    init_from: str = ""
    num_steps: int = 3000
    batch_size: int = 32
    num_buckets: int = 3
    steps_per_dispatch: int = 1
    resident: str = "auto"
    resident_bytes: int = 4_000_000_000
    average_decay: float = 0.0
    compute_dtype: str = "float32"
    trainable: tuple[str, ...] = (".*",)
    fixed: tuple[str, ...] = ()
    log_every: int = 20
    validate_every: int = 0
    validate_limit: int = 0
    patience: int = 0
    max_train_s: float = 0.0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2

    def __post_init__(self):
        counts = ("batch_size", "num_buckets", "log_every", "keep_checkpoints")
        limits = ("num_steps", "steps_per_dispatch", "validate_limit", "patience", "max_train_s")
        problems = [
            *checks.below(self, 1, *counts),
            *checks.below(self, 0, *limits),
            *checks.unlisted(self, resident=RESIDENT, compute_dtype=COMPUTE_DTYPES),
            *checks.no_fraction(self, "average_decay"),
        ]
        if self.patience and not self.validate_every:
            problems.append("patience needs validations on the way; set train.validate_every")
        checks.refuse("train", problems)


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop trains.

    Attributes:
        config: settings.
        spec: projector, objective, optimizer, augmentation.
        frozen: table rows (and the LLM, for objectives that need it).
        examples: training examples over the feature cache.
        validate: parameters -> scalars on validation speakers; None for no validation.
        seed: of initialisation, order, augmentation and dropout.
    """

    config: Config
    spec: step_lib.StepSpec
    frozen: Frozen
    examples: batching.Examples
    validate: Callable[[PyTree], dict[str, float]] | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        params: {'projector', 'objective'} to export (averaged where `average_decay` is set).
        step: steps done.
        first_step: steps that were done before: what a resumed run found.
        train_s: seconds from `first_step` to the last step, compilation and validation left out.
        compile_s: seconds of compilation.
        validation: last validation scalars.
        finished: False if a signal ended the run early.
        stopped: why it ended before the last step, '' if it did not.
        best: the best validation (lowest WER) with its 'step' and 'train_s', {} without any.
        first_group_at_s: when this process had done its first steps, seconds since the epoch.
        input_s: part of `train_s` in which the loop waited for a batch to be chosen, gathered and padded. The
            device waits for at most that long: it works on the steps before meanwhile.
    """

    params: PyTree
    step: int
    first_step: int
    train_s: float
    compile_s: float
    validation: dict[str, float]
    finished: bool
    stopped: str = ""
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    first_group_at_s: float = 0.0
    input_s: float = 0.0


def init_params(run: Run) -> PyTree:
    """Fresh {'projector', 'objective'} parameters of a run."""
    projector_key, objective_key = jax.random.split(jax.random.key(run.seed))
    width = run.examples.frames(0).shape[1]
    shape = (1, batching.BUCKET_MULTIPLE_FRAMES)
    variables = jax.jit(run.spec.projector.init)(
        projector_key, jnp.zeros((*shape, width)), jnp.ones(shape, bool)
    )
    objective = run.spec.objective.init(run.spec.objective_config, objective_key, run.frozen)
    return {"projector": variables["params"], "objective": objective}


def fit(
    run: Run,
    state: step_lib.TrainState,
    workdir: str | os.PathLike,
    *,
    resume: bool = True,
    progress: bool = True,
) -> Result:
    """Trains from `state`, or from the newest checkpoint of `workdir` if there is one.

    Args:
        run: what to train.
        state: at step 0; its arrays are given away to the first step.
        workdir: for checkpoints and logs.
        resume: False deletes the checkpoints in `workdir` and starts over.
        progress: show a progress bar.

    Raises:
        NonFiniteLossError: naming the step and the utterances; earlier checkpoints stay.
        CheckpointError: a checkpoint could not be written or restored.
    """
    config = run.config
    buckets = batching.bucket_lengths(run.examples.num_frames_N, config.num_buckets)
    with Checkpointer(workdir, config.keep_checkpoints) as saver, _Interrupt() as interrupt:
        # ---- resume -------------------------------------------------------------------------------
        if not resume:
            saver.clear()
        elif saver.latest_step() is not None:
            state = saver.restore(state)
            logging.info("resumed at step %d of %d", int(state.step), config.num_steps)
        first_step = done = int(state.step)
        frozen = jax.tree.map(jnp.asarray, run.frozen)
        groups = batching.schedule(
            run.examples,
            config.batch_size,
            buckets,
            config.steps_per_dispatch,
            run.seed,
            first_step,
        )
        dispatch = _Dispatcher(run, buckets, _until(groups, config.num_steps - first_step))
        logging.info("buckets of %s frames, %s", buckets, dispatch.describe())
        watch = _Watch(config, dispatch, first_step)
        first_group_at_s = 0.0
        pending: tuple[batching.Group, dict] | None = None

        with RunLog(workdir, first_step, config.num_steps, progress) as log, dispatch:
            while done < config.num_steps and not interrupt.seen and not watch.stopped:
                # ---- steps ------------------------------------------------------------------------
                group, batches = dispatch.take()
                state, metrics = dispatch(state, frozen, group, batches)
                if not first_group_at_s:
                    jax.block_until_ready(metrics)
                    first_group_at_s = time.time()
                previous, done = done, done + len(group.index_KB)

                # ---- log the group before: the device is busy with this one meanwhile ---------------
                if pending is not None:
                    log_group(run, log, *pending)
                pending = (group, metrics)

                # ---- validate and save --------------------------------------------------------------
                if crossed(previous, done, config.validate_every) and done < config.num_steps:
                    log_group(run, log, *pending)
                    pending = None
                    watch.validate(run, state, log, done)
                if crossed(previous, done, config.checkpoint_every) and done < config.num_steps:
                    log_group(run, log, *(pending or (None, None)))
                    pending = None
                    saver.save(state)
            if pending is not None:
                log_group(run, log, *pending)
            jax.block_until_ready(state.trainable)
            train_s = watch.train_s()
            saver.save(state)
            if (done >= config.num_steps or watch.stopped) and watch.validated != done:
                watch.validate(run, state, log, done)

    if interrupt.seen:
        logging.warning(
            "signal %s: saved step %d of %d; the same command goes on from there",
            signal.Signals(interrupt.seen).name,
            done,
            config.num_steps,
        )
    return Result(
        params=export_params(run.config, state),
        step=done,
        first_step=first_step,
        train_s=train_s,
        compile_s=dispatch.compile.seconds,
        validation=watch.validation,
        finished=done >= config.num_steps or bool(watch.stopped),
        stopped=watch.stopped,
        best=watch.best,
        first_group_at_s=first_group_at_s,
        input_s=dispatch.input.seconds,
    )


def export_params(config: Config, state: step_lib.TrainState) -> PyTree:
    """The whole parameter tree, averaged where the run keeps an average."""
    trained = state.average if config.average_decay else state.trainable
    return merge(trained, state.fixed)


class Stopwatch:
    """Adds up the seconds of its blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start_s = time.monotonic()

    def __exit__(self, *unused) -> None:
        self.seconds += time.monotonic() - self._start_s


class _Dispatcher:
    """Sends groups of steps to the device, compiling each bucket's program once; input timed apart, too."""

    def __init__(self, run: Run, buckets: tuple[int, ...], groups: Iterator[batching.Group]):
        self._run, self._compiled = run, {}
        self.compile, self.input = Stopwatch(), Stopwatch()
        examples = run.examples
        width, itemsize = examples.frames(0).shape[1], examples.frames(0).itemsize
        self._corpus_bytes = len(examples) * buckets[-1] * width * itemsize
        fits = self._corpus_bytes <= run.config.resident_bytes
        self._resident = run.config.resident == "always" or (run.config.resident == "auto" and fits)
        if self._resident:
            self._corpus = resident_corpus(examples, buckets[-1])
            self._steps = step_lib.make_resident_steps(run.spec)
        elif not run.config.steps_per_dispatch:
            raise ConfigError(
                f"train.steps_per_dispatch=0 needs the corpus on the device, but its "
                f"{self._corpus_bytes / 1e6:.0f} MB are streamed; set a number of steps, or "
                "train.resident='always'"
            )
        else:
            self._steps = step_lib.make_stream_steps(run.spec)
        self._inputs = made_ahead(self._input, groups)

    def __enter__(self) -> "_Dispatcher":
        return self

    def __exit__(self, *unused) -> None:
        self._inputs.close()

    def describe(self) -> str:
        where = "on the device" if self._resident else "streamed from the cache"
        return f"{len(self._run.examples)} utterances ({self._corpus_bytes / 1e6:.0f} MB) {where}"

    def take(self) -> tuple[batching.Group, tuple]:
        """The next group, and what its steps need of the corpus."""
        with self.input:
            return next(self._inputs)

    def __call__(self, state, frozen: Frozen, group: batching.Group, batches: tuple):
        args, static, key = (state, frozen, *batches), {}, (group.max_frames, len(group.index_KB))
        if self._resident:
            static, key = {"max_frames": group.max_frames}, (group.max_frames,)
        if key not in self._compiled:
            with self.compile:
                self._compiled[key] = self._steps.lower(*args, **static).compile()
        return self._compiled[key](*args)

    def _input(self, group: batching.Group) -> tuple[batching.Group, tuple]:
        if self._resident:
            rows = pad_group(group, dispatch_steps(self._run))
            return group, (self._corpus, *rows, len(group.index_KB))
        return group, (jax.device_put(self._batches(group)),)

    def _batches(self, group: batching.Group) -> Batch:
        # All steps' rows in one padded array: a batch a step, stacked, would be copied once more.
        rows = group.index_KB.reshape(-1), group.weight_KB.reshape(-1)
        batches = batching.gather(self._run.examples, *rows, group.max_frames)
        return jax.tree.map(lambda x: x.reshape(*group.index_KB.shape, *x.shape[1:]), batches)


class _Watch:
    """The clock of a run: its validations, the best of them, and whether it is time to stop."""

    def __init__(self, config: Config, dispatch: _Dispatcher, first_step: int):
        self._config, self._dispatch, self._first_step = config, dispatch, first_step
        self._start_s, self._validate_s = time.monotonic(), 0.0
        self._since_best = 0
        self.validation: dict[str, float] = {}
        self.validated: int | None = None
        self.best: dict[str, float] = {}

    def train_s(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self._start_s - self._validate_s - self._dispatch.compile.seconds

    @property
    def stopped(self) -> str:
        """Why training is to end now, '' if it is not."""
        limit_s, patience = self._config.max_train_s, self._config.patience
        if limit_s and self.train_s() > limit_s:
            return f"max_train_s={limit_s:g}"
        if patience and self._since_best >= patience:
            return f"patience={patience}"
        return ""

    def validate(self, run: Run, state, log: RunLog, done: int) -> None:
        train_s = self.train_s()
        if done > self._first_step:
            input_share = self._dispatch.input.seconds / train_s
            log.write(done, {"train_s": train_s, "input_share": input_share})
        self.validation, seconds = validate_now(run, state, log, done)
        self._validate_s += seconds
        self.validated = done
        if "wer" in self.validation:
            found = better(self.best, self.validation, done, train_s)
            self._since_best = self._since_best + 1 if found is self.best else 0
            self.best = found


def better(
    best: dict[str, float], scores: Mapping[str, float], step: int, train_s: float
) -> dict[str, float]:
    """`best`, or the newest `scores` with their step and seconds if their WER is lower."""
    if "wer" not in scores or (best and not scores["wer"] < best["wer"]):
        return best
    return {**scores, "step": step, "train_s": round(train_s, 2)}


class _Interrupt:
    """Remembers SIGTERM and SIGINT so that the loop can save and leave; a second one is not caught."""

    def __init__(self):
        self.seen = 0

    def __enter__(self) -> "_Interrupt":
        self._before = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: whoever runs us there handles signals
            pass
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        self.seen = number
        signal.signal(number, self._before[number])


def resident_corpus(examples: batching.Examples, max_frames: int) -> Batch:
    """All examples on the device, padded to `max_frames`."""
    everything = np.arange(len(examples))
    corpus = batching.gather(examples, everything, np.ones(len(everything)), max_frames)
    return placing.put(corpus)


def dispatch_steps(run: Run) -> int:
    """Steps that a dispatch over a resident corpus has room for."""
    whole_epoch = -(-len(run.examples) // run.config.batch_size)
    return run.config.steps_per_dispatch or whole_epoch


def pad_group(group: batching.Group, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and weights of a group, filled up to `num_steps` steps that will not be run."""
    pad = ((0, num_steps - len(group.index_KB)), (0, 0))
    return np.pad(group.index_KB, pad).astype(np.int32), np.pad(group.weight_KB, pad)


def _until(groups: Iterator[batching.Group], num_steps: int) -> Iterator[batching.Group]:
    """Groups of `num_steps` steps in all, the last one shortened."""
    while num_steps > 0:
        group = batching.steps_of(next(groups), 0, num_steps)
        yield group
        num_steps -= len(group.index_KB)


def crossed(previous: int, done: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (previous, done]; never for 0."""
    return bool(every) and done // every > previous // every


def validate_now(run: Run, state, log: RunLog, done: int) -> tuple[dict[str, float], float]:
    """Validation scores after `done` steps, which are logged, and the seconds they took."""
    if run.validate is None:
        return {}, 0.0
    start_s = time.monotonic()
    scores = run.validate(export_params(run.config, state))
    log.write(done, {f"validation/{k}": v for k, v in scores.items()})
    logging.info("step %d: %s", done, ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    return scores, time.monotonic() - start_s


def log_group(run: Run, log: RunLog, group: batching.Group | None, metrics: dict | None) -> None:
    """Fetches a group's metrics, stops at a non-finite loss, writes every `log_every`-th step."""
    if group is None or metrics is None:
        return
    host = jax.tree.map(np.asarray, metrics)
    for k in range(len(group.index_KB)):
        step = group.first_step + k + 1
        _require_finite(run, group, k, host, step)
        if step % run.config.log_every == 0 or step == run.config.num_steps:
            log.write(step, {n: v[k] for n, v in host.items() if v.ndim == 1})
    log.progress(group.first_step + len(group.index_KB), {"loss": float(host["loss"][k])})


def _require_finite(run: Run, group: batching.Group, k: int, host: dict, step: int) -> None:
    if np.isfinite(host["loss"][k]) and np.isfinite(host["grad_norm"][k]):
        return
    real = group.weight_KB[k] > 0
    bad = ~np.isfinite(host["loss_B"][k]) & real
    chosen = bad if bad.any() else real
    names = [run.examples.ids[i] for i in group.index_KB[k][chosen]]
    what = "loss" if bad.any() else "gradient"
    raise NonFiniteLossError(
        f"non-finite {what} at step {step} (loss {host['loss'][k]}, gradient norm "
        f"{host['grad_norm'][k]}); utterances: {', '.join(names[:8])}"
        f"{' ...' if len(names) > 8 else ''}. The last checkpoint is intact. Look at these "
        "utterances' audio and text, or lower optimizer.learning_rate."
    )
