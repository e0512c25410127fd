"""Many users for research: their utterances on the device, and the jobs that a study is made of.

A job is one user, one fold and one seed: six utterances to score, the other fourteen to adapt on. The
control is the same job with the fourteen of another speaker. Rows of a job always stand in this order:
test, validation, adaptation; so what is scored is the first rows of whatever comes back.
"""

import collections
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax.adapt import fit, material, replay, user, word_prior
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import splits, vocabulary
from tiny_align_jax.types import ConfigError, DataError, Utterance

HIDDEN = -1e9  # bias of table rows that a user does not say and the base does not know


@dataclasses.dataclass(frozen=True)
class Crew:
    """Users who are adapted side by side.

    Attributes:
        base: with every row that any of them says; rows past `num_base_rows` are hidden from users who
            do not say them.
        num_base_rows: rows that the base itself reads.
        speakers: names, sorted.
        utterances: of all speakers, in the order of the corpus's rows.
        corpus: their frames on the device.
        targets: table rows of each utterance.
        topics_KV: words of the base's training speakers.
    """

    base: Aligner
    num_base_rows: int
    speakers: tuple[str, ...]
    utterances: tuple[Utterance, ...]
    corpus: fit.Corpus
    targets: tuple[np.ndarray, ...]
    topics_KV: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which rows each job scores and learns from, on the host.

    Attributes:
        speaker_J: index of the speaker that is scored.
        fold_J: which six utterances.
        seed_J: of the adaptation.
        rows_JS: rows of the corpus.
        train_JS: 1.0 where trained on.
        valid_JS: 1.0 where validated on.
        num_test: leading rows that are scored.
    """

    speaker_J: np.ndarray
    fold_J: np.ndarray
    seed_J: np.ndarray
    rows_JS: np.ndarray
    train_JS: np.ndarray
    valid_JS: np.ndarray
    num_test: int

    def __len__(self) -> int:
        return len(self.speaker_J)


def gather(
    base: Aligner,
    cache_dir: str,
    utterances: Sequence[Utterance],
    train: Sequence[Utterance],
    least: int = 18,
) -> Crew:
    """Frames and targets of all users; features that the cache lacks are extracted.

    Args:
        base: the projector to adapt.
        cache_dir: folder of weights and features.
        utterances: of the users.
        train: what the base was trained on, for the topics of its words.
        least: users with fewer utterances are left out, by name.

    Raises:
        DataError: nobody has as many.
    """
    pairs = list(zip(*replay.cached_frames(base, cache_dir, utterances), strict=True))
    counts = collections.Counter(u.speaker_id for _, u in pairs)
    few = sorted(s for s, n in counts.items() if n < least)
    if few:
        logging.warning(
            "%d user(s) with fewer than %d utterances left out: %s", len(few), least, few
        )
    pairs = [(f, u) for f, u in pairs if counts[u.speaker_id] >= least]
    if not pairs:
        raise DataError(f"no user has {least} utterances; the most are {max(counts.values())}")
    frames, used = [f for f, _ in pairs], [u for _, u in pairs]
    extra = vocabulary.missing_ids(base.vocabulary, [u.text for u in used])
    wide = user.extend(base, extra)
    targets = tuple(wide.vocabulary.encode(u.text) for u in used)
    return Crew(
        base=wide,
        num_base_rows=len(base.vocabulary),
        speakers=tuple(sorted({u.speaker_id for u in used})),
        utterances=tuple(used),
        corpus=jax.device_put(material.frames_corpus(frames, targets)),
        targets=targets,
        topics_KV=np.pad(replay.topics(base.vocabulary, train), ((0, 0), (0, len(extra)))),
    )


def plan(
    crew: Crew,
    *,
    folds: Sequence[int],
    seeds: Sequence[int],
    num_test: int = 6,
    num_validation: int = 3,
    num_adapt: int = 0,
    validate: bool = True,
    control: int = 0,
) -> Plan:
    """Jobs of every user, fold and seed.

    Args:
        crew: the users.
        folds: which test utterances, see `splits.within_speaker`.
        seeds: of the adaptation; the folds do not depend on them.
        num_test: utterances scored a job.
        num_validation: utterances taken out of the others.
        num_adapt: train on so many only; 0 for all.
        validate: False trains on the validation utterances as well.
        control: learn from the user so many places further on instead.

    Raises:
        ConfigError: a user with too few utterances.
    """
    by_speaker: dict[str, list[int]] = {name: [] for name in crew.speakers}
    for row, u in enumerate(crew.utterances):
        by_speaker[u.speaker_id].append(row)
    most = max(len(rows) for rows in by_speaker.values())
    row_of = {u.utterance_id: row for row, u in enumerate(crew.utterances)}
    jobs, count = [], len(crew.speakers)
    shift = control % count or min(control, 1)  # never the user's own
    for index, name in enumerate(crew.speakers):
        source = crew.speakers[(index + shift) % count]
        for fold in folds:
            own, other = (
                _roles(crew, by_speaker[s], num_test, num_validation, fold) for s in (name, source)
            )
            test = [row_of[u.utterance_id] for u in own.test]
            valid = [row_of[u.utterance_id] for u in other.validation]
            train = [row_of[u.utterance_id] for u in other.train]
            jobs += [(index, fold, seed, test, valid, train) for seed in seeds]
    return _stack(jobs, most, num_test, num_validation, num_adapt, validate)


def _roles(crew: Crew, rows, num_test, num_validation, fold) -> splits.Split:
    said = [crew.utterances[row] for row in rows]
    return splits.within_speaker(said, num_test, num_validation, fold)


def _stack(jobs, most: int, num_test, num_validation, num_adapt, validate) -> Plan:
    rows = np.zeros((len(jobs), most), np.int32)
    train_JS, valid_JS = np.zeros((2, len(jobs), most), np.float32)
    for row, train_S, valid_S, (_, _, _, test, valid, train) in zip(
        rows, train_JS, valid_JS, jobs, strict=True
    ):
        chosen = [*test, *valid, *train][:most]
        if len(test) != num_test:
            raise ConfigError(f"a user has {len(test)} test utterances, expected {num_test}")
        row[:] = (chosen + [chosen[-1]] * most)[:most]  # short of some: fill rows, which do nothing
        first = num_test + (len(valid) if validate else 0)
        last = min(first + num_adapt, len(chosen)) if num_adapt else len(chosen)
        train_S[first:last] = 1
        valid_S[num_test : num_test + len(valid)] = float(validate)
    speaker, fold, seed = (np.array([job[k] for job in jobs], np.int32) for k in range(3))
    return Plan(speaker, fold, seed, rows, train_JS, valid_JS, num_test)


def jobs_of(crew: Crew, plan: Plan, prior: word_prior.Config | None = None) -> fit.Jobs:
    """Device form of a plan, with each job's word prior (None: none) and its own rows only."""
    how = prior or word_prior.Config(weight=0.0)
    known: dict[bytes, np.ndarray] = {}  # seeds of a user and fold learn from the same rows
    biases = []
    for job in range(len(plan)):
        key = plan.rows_JS[job][_used(plan, job)].tobytes()
        if key not in known:
            known[key] = _own_bias(crew, how, _own_targets(crew, plan, job))
        biases.append(known[key])
    return _device_jobs(plan, np.stack(biases))


def _own_bias(crew: Crew, how: word_prior.Config, targets: Sequence[np.ndarray]) -> np.ndarray:
    """A user's word prior, and rows hidden that neither the base nor the user says."""
    bias_V = word_prior.row_bias(how, crew.topics_KV, targets)
    hidden = np.ones(len(bias_V), bool)
    hidden[: crew.num_base_rows] = False
    hidden[np.concatenate(targets)] = False
    bias_V[hidden] = HIDDEN
    return bias_V


def base_jobs(crew: Crew, plan: Plan) -> fit.Jobs:
    """Jobs that read as the base does: its own rows and no prior."""
    bias_V = np.zeros(len(crew.base.vocabulary), np.float32)
    bias_V[crew.num_base_rows :] = HIDDEN
    return _device_jobs(plan, np.tile(bias_V, (len(plan), 1)))


def learnt_from(crew: Crew, plan: Plan, job: int) -> list[Utterance]:
    """What a job learns from, validation utterances included."""
    return [crew.utterances[row] for row in plan.rows_JS[job][_used(plan, job)]]


def tested(crew: Crew, plan: Plan, job: int) -> list[Utterance]:
    """What a job is scored on."""
    return [crew.utterances[row] for row in plan.rows_JS[job][: plan.num_test]]


def _own_targets(crew: Crew, plan: Plan, job: int) -> list[np.ndarray]:
    return [crew.targets[row] for row in plan.rows_JS[job][_used(plan, job)]]


def _used(plan: Plan, job: int) -> np.ndarray:
    """Which rows a job learns from, validation included, bool [S]."""
    return (plan.train_JS[job] + plan.valid_JS[job]) > 0


def _device_jobs(plan: Plan, bias_JV: np.ndarray) -> fit.Jobs:
    # Keys by user, fold and seed: a control differs from its job by what it learns from alone.
    keys = jax.vmap(
        lambda s, f, u: jax.random.fold_in(jax.random.fold_in(jax.random.key(s), f), u)
    )(*(jnp.asarray(x) for x in (plan.seed_J, plan.fold_J, plan.speaker_J)))
    return fit.Jobs(
        rows_JS=jnp.asarray(plan.rows_JS),
        train_JS=jnp.asarray(plan.train_JS),
        valid_JS=jnp.asarray(plan.valid_JS),
        row_bias_JV=jnp.asarray(bias_JV),
        key_J=jax.random.key_data(keys),
    )
