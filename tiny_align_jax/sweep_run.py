"""Runs the points of a sweep in one process: train what is missing, score it, go on past a crash.

A folder a point: what a training run leaves, the scores, and `point.json` with labels, overrides,
versions and how it ended. Points that differ in scoring alone train once; equal steps compile once;
points that differ by seed or learning rate alone may train as lanes of one program. Several processes may
run the same points: each takes what no other has taken, and what a dead one has left.
"""

import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
from absl import logging

from tiny_align_jax import checks, evaluate, heap, registry, sweep
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.responder import Llm
from tiny_align_jax.train import checkpoint, logs, run
from tiny_align_jax.types import ConfigError

POINT_FILE = "point.json"
_LOCKS = "locks"
FINISHED, FAILED, IMPOSSIBLE, RUNNING = "finished", "failed", "impossible", "running"
INTERRUPTED, NOT_STARTED = "interrupted", "not started"
SCORES = ("none", "heard", "answer")
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", "Out of memory", "(memory?)")
_TRAINED_FILES = (
    checkpoint.PROJECTOR_WEIGHTS,
    checkpoint.PROJECTOR_CARD,
    run.RESULT_FILE,
    logs.LOG_FILE,
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How points are run and scored.

    Attributes:
        score: 'none', 'heard' (the reading, no LLM) or 'answer' (the LLM's answer, too). Objectives
            that train through the LLM are scored by its answer to the raw tokens unless 'none'.
        split: role whose utterances are scored; leave 'test' for what was chosen on 'validation'.
        limit: score only so many utterances, drawn by seed; 0 for all.
        attempts: times a point may crash in one invocation.
        invocation: name of this invocation; a worker process that takes over after another died
            gets the same, so that its crash counts.
        lanes: points that may train side by side as one program; 1 trains each alone, so that its
            seconds are its own.
    """

    score: str = "heard"
    split: str = "validation"
    limit: int = 0
    attempts: int = 2
    invocation: str = ""
    lanes: int = 1

    def __post_init__(self):
        problems = checks.unlisted(self, score=SCORES, split=evaluate.SPLITS)
        checks.refuse("sweep", [*problems, *checks.below(self, 1, "attempts", "lanes")])

    @property
    def scoring(self) -> str:
        """Names the scoring in point.json."""
        return f"{self.split}/{self.score}" + (f"/{self.limit}" if self.limit else "")


class Runner:
    """Runs points in this process.

    Attributes:
        workdir: holds a folder a point.
        cache_dir: weights and features, shared by all points.
    """

    def __init__(self, workdir: Path, cache_dir: str, settings: Settings):
        self.workdir, self.cache_dir = Path(workdir), cache_dir
        self._settings = settings
        self._num_trained = 0
        self._points: Sequence[sweep.Point] = ()
        self._locks: dict[str, filelock.BaseFileLock] = {}
        self._llms: dict[tuple[str, str], Llm] = {}
        self._about = {"source": source_version(), "versions": _versions()}

    def run(
        self,
        points: Sequence[sweep.Point],
        on_done: Callable[[sweep.Point, dict[str, Any]], None] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Runs all points, whatever becomes of some; Ctrl-C ends the sweep and can be resumed.

        Returns:
            Contents of every point's point.json, by name.

        Raises:
            ConfigError: folders that hold points of another config (before anything is run).
        """
        refuse_other_configs(points, self.workdir)
        self._points = points
        found: dict[str, dict[str, Any]] = {}
        left = list(points)
        # Points that another process is at come last: by then it has finished them, or died.
        for timeout_s in (0, -1):
            busy = []
            for point in left:
                try:
                    with contextlib.ExitStack() as locks:
                        self._take(point, locks, timeout_s)
                        before = read_status(self.workdir / point.name)
                        status = found[point.name] = self._run_one(point)
                except filelock.Timeout:
                    busy.append(point)
                    continue
                # What another process of this invocation has done, it has told.
                if on_done is not None and (status != before or not self._is_ours(before)):
                    on_done(point, status)
                if status["status"] == INTERRUPTED:
                    return found
            left = busy
        return found

    def _is_ours(self, status: Mapping[str, Any]) -> bool:
        return bool(self._settings.invocation) and (
            status.get("invocation") == self._settings.invocation
        )

    def _take(self, point: sweep.Point, locks: contextlib.ExitStack, timeout_s: float) -> None:
        """Claims a point, and its training if that is still to be done; claims fall with the process."""
        locks.enter_context(self._lock(point.name).acquire(timeout=timeout_s))
        if not is_trained(self.workdir / point.name):
            locks.enter_context(self._lane_lock(point).acquire(timeout=timeout_s))

    def _lane_lock(self, point: sweep.Point) -> filelock.BaseFileLock:
        """Held while a point, or one that may train beside it, is being trained."""
        return self._lock(sweep.lane_key(point.config))

    def _lock(self, name: str) -> filelock.BaseFileLock:
        if name not in self._locks:
            folder = self.workdir / _LOCKS
            folder.mkdir(parents=True, exist_ok=True)
            self._locks[name] = filelock.FileLock(folder / f"{name}.lock")
        return self._locks[name]

    def _run_one(self, point: sweep.Point) -> dict[str, Any]:
        folder = self.workdir / point.name
        status = read_status(folder)
        if is_done(status, self._settings):
            return status
        if self._is_ours(status) and status["status"] in (FAILED, IMPOSSIBLE):
            return status  # another process, or a lane beside it, has met it before
        same = status.get("invocation", "") == self._settings.invocation
        attempts = status.get("attempts", 0) if same and status["status"] == RUNNING else 0
        if attempts >= self._settings.attempts:
            error = f"the process died {attempts} time(s) while it ran this point (memory?)"
            return self._write(point, status | {"status": FAILED, "error": error})
        impossible = sweep.why_impossible(point)
        if impossible:
            return self._write(point, status | {"status": IMPOSSIBLE, "error": impossible})
        while True:
            attempts += 1
            status = self._write(point, status | {"status": RUNNING, "attempts": attempts})
            ended = self._attempt(point, folder, status)
            if ended["status"] != FAILED or attempts >= self._settings.attempts:
                return self._write(point, ended)
            logging.warning("%s: attempt %d failed: %s", point.name, attempts, ended["error"])

    def _attempt(
        self, point: sweep.Point, folder: Path, status: Mapping[str, Any]
    ) -> dict[str, Any]:
        start_s = time.monotonic()
        try:
            added = self._train(point, folder)
            self._lane_lock(point).release()  # others may take this training over now
            if added is None:
                return {**status, "status": INTERRUPTED, "error": "interrupted; run it again"}
            scored = self._score(point, folder, status)
        except KeyboardInterrupt:
            return {**status, "status": INTERRUPTED, "error": "interrupted; run it again"}
        except ConfigError as error:
            return {**status, "status": IMPOSSIBLE, "error": str(error)}
        except Exception as error:  # one point's crash must not cost the others
            (folder / "error.txt").write_text(traceback.format_exc())
            return {**status, "status": FAILED, "error": f"{type(error).__name__}: {error}"}
        finally:
            gc.collect()  # the device arrays of this point, before the next one needs the room
            heap.drop_many_programs()
        seconds = round(time.monotonic() - start_s, 2)
        return {**status, **added, "status": FINISHED, "error": "", "scored": scored,
                "seconds": seconds}  # fmt: skip

    def _train(self, point: sweep.Point, folder: Path) -> dict[str, Any] | None:
        """Trains, or takes over an equal run; None if a signal ended it."""
        if is_trained(folder):
            return {}
        twin = self._twin(point)
        if twin is not None:
            adapters = [f for f in (checkpoint.LORA_WEIGHTS,) if (twin / f).is_file()]
            for name in (*_TRAINED_FILES, *adapters):
                shutil.copyfile(twin / name, folder / name)
            checkpoint.write_json(folder / run.CONFIG_FILE, point.config)
            return {"trained_in": twin.name}
        before = self._num_trained
        self._num_trained += 1
        together = [point, *self._mates(point)]
        if len(together) > 1:
            return {"runs_before": before} | self._train_together(together)
        result = run.train(point.config, folder, self.cache_dir, progress=False)
        return {"runs_before": before} if result["finished"] else None

    def _mates(self, point: sweep.Point) -> list[sweep.Point]:
        """Further points that may train beside this one and are not trained yet."""
        train = point.config["train"]
        if self._settings.lanes == 1 or train.get("patience") or train.get("max_train_s"):
            return []  # lanes end together: none can stop before the others
        key, keys = sweep.lane_key(point.config), {sweep.training_key(point.config)}
        mates = []
        for other in self._points:
            own = sweep.training_key(other.config)
            if own in keys or sweep.lane_key(other.config) != key:
                continue  # the same training twice is taken over, not repeated
            if not is_trained(self.workdir / other.name) and not sweep.why_impossible(other):
                keys.add(own)
                mates.append(other)
        return mates[: self._settings.lanes - 1]

    def _train_together(self, points: Sequence[sweep.Point]) -> dict[str, Any]:
        """Trains all as lanes; the first one's error is raised, those of others are written down."""
        folders = [self.workdir / p.name for p in points]
        configs = [p.config for p in points]
        try:
            results = run.train_lanes(configs, folders, self.cache_dir, progress=False)
        except jax.errors.JaxRuntimeError as error:  # most likely no memory for all of them at once
            logging.warning("%d lanes failed (%s); alone instead", len(points), error)
            run.train(points[0].config, folders[0], self.cache_dir, progress=False, resume=False)
            return {}
        for other, result in zip(points[1:], results[1:], strict=True):
            if isinstance(result, Exception):
                error = f"{type(result).__name__}: {result}"
                self._write(other, {"status": FAILED, "error": error})
        if isinstance(results[0], Exception):
            raise results[0]
        return {"lanes": [p.name for p in points]}

    def _twin(self, point: sweep.Point) -> Path | None:
        key = sweep.training_key(point.config)
        for folder in sorted(self.workdir.glob(f"*/{POINT_FILE}")):
            config = folder.with_name(run.CONFIG_FILE)
            has_weights = folder.with_name(checkpoint.PROJECTOR_WEIGHTS).is_file()
            trained = is_trained(folder.parent) and has_weights
            if trained and sweep.training_key(_json(config)) == key:
                return folder.parent
        return None

    def _score(
        self, point: sweep.Point, folder: Path, status: Mapping[str, Any]
    ) -> dict[str, dict[str, str]]:
        """Names of the files with scores, by scoring; earlier scorings stay."""
        settings, done = self._settings, dict(status.get("scored", {}))
        if settings.score == "none" or settings.scoring in done:
            return done
        objective = registry.resolve("objectives", point.config["objective"]["name"])
        reads_raw = "llm" in objective.NEEDS
        default = "none" if reads_raw else evaluate.Config().snap
        snap = point.config.get("evaluation", {}).get("snap") or default
        config = evaluate.Config(
            split=settings.split,
            limit=settings.limit,
            snap=snap,
            use_llm=settings.score == "answer" or reads_raw,
        )
        aligner = self._load(folder, config.use_llm)
        made = evaluate.evaluate(aligner, self.cache_dir, config)
        paths = evaluate.write(made, folder)
        return {**done, settings.scoring: {kind: path.name for kind, path in paths.items()}}

    def _load(self, folder: Path, need_llm: bool) -> Aligner:
        """The aligner of a folder; the LLM is read once for all points that use it."""
        config = _json(folder / run.CONFIG_FILE)
        key = (config["llm"]["asset"], config["llm"]["dtype"])
        kept = self._llms.get(key)
        adapted = (folder / checkpoint.LORA_WEIGHTS).is_file()  # its LLM is its own
        aligner = Aligner.load(folder, self.cache_dir, need_llm=need_llm and (adapted or not kept))
        if not need_llm or adapted:
            return aligner
        if kept is None:
            assert aligner.llm is not None
            kept = self._llms[key] = aligner.llm
        return dataclasses.replace(aligner, llm=kept)

    def _write(self, point: sweep.Point, status: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.workdir / point.name
        folder.mkdir(parents=True, exist_ok=True)
        made = {
            **status,
            "name": point.name,
            "index": point.index,
            "row": point.row,
            "labels": dict(point.labels),
            "overrides": dict(point.overrides),
            "config": point.config,
            "invocation": self._settings.invocation,
            **self._about,
        }
        checkpoint.write_json(folder / POINT_FILE, made)
        return made


def read_status(folder: Path) -> dict[str, Any]:
    """Contents of a point's point.json; only a status if it was never started."""
    path = folder / POINT_FILE
    return _json(path) if path.is_file() else {"status": NOT_STARTED}


def is_trained(folder: Path) -> bool:
    """Whether a folder holds a run that reached its last step."""
    path = folder / run.RESULT_FILE
    return path.is_file() and bool(_json(path)["finished"])


def is_done(status: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a point is finished, its scoring included."""
    scored = settings.score == "none" or settings.scoring in status.get("scored", {})
    return status["status"] == FINISHED and scored


def lacked_memory(status: Mapping[str, Any]) -> bool:
    """Whether a point failed for want of memory, which it may find once no other process holds it."""
    error = status.get("error", "")
    return status["status"] == FAILED and any(words in error for words in _NO_MEMORY)


def refuse_other_configs(points: Sequence[sweep.Point], workdir: Path) -> None:
    """Raises ConfigError that lists the folders whose trained run has another config than the point."""
    others = []
    for point in points:
        folder = Path(workdir) / point.name
        saved = read_status(folder).get("config")
        if not is_trained(folder) or saved is None:
            continue
        if registry.without_unread(saved) != _plain(point.config):
            others.append(point.name)
    if others:
        raise ConfigError(
            f"{workdir} holds finished points of another config: {', '.join(others[:8])}"
            f"{' ...' if len(others) > 8 else ''}; use another --workdir, or remove those folders"
        )


def source_version() -> dict[str, Any]:
    """Commit of the source tree and whether it was changed since; empty outside a git checkout."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(root, "status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
