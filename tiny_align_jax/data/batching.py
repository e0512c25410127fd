"""Batches of cached frames: which utterances, in which order, padded to which length.

The order is a pure function of (seed, epoch), so a run that stops and resumes at a step sees the batches
that an uninterrupted run sees. Utterances are grouped by length into a few buckets, because a step
compiles once per shape and costs by its longest row.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tiny_align_jax.types import Batch, DataError

# Bucket lengths are multiples of this many frames (0.64 s of Whisper), so that runs over similar
# corpora share compiled shapes.
BUCKET_MULTIPLE_FRAMES = 32


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training or evaluation examples without their frames.

    Attributes:
        ids: utterance ids, for messages and predictions.
        num_frames_N: valid frames of each, int32.
        target_ids_NL: table rows of each transcript, 0 where invalid, int32.
        num_targets_N: valid targets of each, int32.
        frames: index -> frames [T, E] float16, a view of the memory-mapped cache.
        corpora: (its examples, its share of an epoch's draws) of each corpus; () draws each example once.
    """

    ids: tuple[str, ...]
    num_frames_N: np.ndarray
    target_ids_NL: np.ndarray
    num_targets_N: np.ndarray
    frames: Callable[[int], np.ndarray]
    corpora: tuple[tuple[np.ndarray, float], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Group:
    """Consecutive steps of one bucket, dispatched together.

    Attributes:
        first_step: step number of the first batch.
        max_frames: padded length of the bucket.
        index_KB: example of each row of each step; fill rows repeat the first example.
        weight_KB: 1.0 for real rows, 0.0 for fill rows.
    """

    first_step: int
    max_frames: int
    index_KB: np.ndarray
    weight_KB: np.ndarray


def steps_of(group: Group, begin: int, end: int | None = None) -> Group:
    """Steps `begin` to `end` of a group, counted from its own first."""
    part = slice(begin, end)
    first_step = group.first_step + begin
    return Group(first_step, group.max_frames, group.index_KB[part], group.weight_KB[part])


def make_examples(
    ids: Sequence[str], num_frames: Sequence[int], targets: Sequence[np.ndarray], frames
) -> Examples:
    """Pads targets into one array.

    Raises:
        DataError: no examples.
    """
    if not ids:
        raise DataError("no usable utterances: every one was skipped or the split is empty")
    num_targets = np.array([len(t) for t in targets], np.int32)
    padded = np.zeros((len(ids), max(int(num_targets.max()), 1)), np.int32)
    for row, target in zip(padded, targets, strict=True):
        row[: len(target)] = target
    return Examples(tuple(ids), np.array(num_frames, np.int32), padded, num_targets, frames)


def of_frames(frames: Sequence[np.ndarray]) -> Examples:
    """Frames of utterances, one [T_i, E] array each, as examples without targets: to be read."""
    ids, none = [str(i) for i in range(len(frames))], [np.zeros(1, np.int32)] * len(frames)
    return make_examples(ids, [len(f) for f in frames], none, lambda i: frames[i])


def bucket_lengths(num_frames_N: np.ndarray, num_buckets: int) -> tuple[int, ...]:
    """Padded lengths that hold equal shares of the utterances, rounded up to the multiple."""
    quantiles = np.quantile(
        num_frames_N, np.arange(1, num_buckets + 1) / num_buckets, method="higher"
    )
    rounded = -(-quantiles.astype(int) // BUCKET_MULTIPLE_FRAMES) * BUCKET_MULTIPLE_FRAMES
    return tuple(sorted({int(r) for r in rounded}))


def schedule(
    examples: Examples,
    batch_size: int,
    buckets: Sequence[int],
    steps_per_group: int,
    seed: int,
    first_step: int = 0,
    shuffle: bool = True,
) -> Iterator[Group]:
    """Groups from `first_step` on, for ever; epochs are reshuffled by (seed, epoch).

    A group has at most `steps_per_group` steps; with 0, all of an epoch in its bucket.

    Raises:
        DataError: an utterance is longer than the last bucket.
    """
    longest = int(examples.num_frames_N.max())
    if longest > buckets[-1]:
        worst = examples.ids[int(examples.num_frames_N.argmax())]
        raise DataError(
            f"utterance {worst!r} has {longest} frames, the largest bucket holds {buckets[-1]}"
        )
    step, epoch = 0, 0
    while True:
        for index_KB, weight_KB, max_frames in _epoch(
            examples, batch_size, buckets, steps_per_group, seed, epoch, shuffle
        ):
            if step + len(index_KB) > first_step:
                skip = max(first_step - step, 0)
                yield steps_of(Group(step, max_frames, index_KB, weight_KB), skip)
            step += len(index_KB)
        epoch += 1


def one_epoch(examples: Examples, batch_size: int, buckets: Sequence[int]) -> Iterator[Group]:
    """Every example once, in order of length bucket: for evaluation."""
    groups = _epoch(examples, batch_size, buckets, 1, 0, 0, False)
    for step, (index_KB, weight_KB, max_frames) in enumerate(groups):
        yield Group(step, max_frames, index_KB, weight_KB)


def gather(examples: Examples, index_B: np.ndarray, weight_B: np.ndarray, max_frames: int) -> Batch:
    """One padded batch on the host, read from the cache."""
    first = examples.frames(int(index_B[0]))
    features = np.zeros((len(index_B), max_frames, first.shape[1]), first.dtype)
    for row, index in zip(features, index_B, strict=True):
        frames = examples.frames(int(index))
        row[: len(frames)] = frames
    return Batch(
        features_BTE=features,
        num_frames_B=examples.num_frames_N[index_B],
        target_ids_BL=examples.target_ids_NL[index_B],
        num_targets_B=examples.num_targets_N[index_B],
        weight_B=weight_B,
        index_B=index_B.astype(np.int32),
    )


def batches_of(examples: Examples, batch_size: int, num_buckets: int) -> Iterator[Batch]:
    """Every example once, padded to few lengths: for validation and evaluation."""
    buckets = bucket_lengths(examples.num_frames_N, num_buckets)
    for group in one_epoch(examples, batch_size, buckets):
        yield gather(examples, group.index_KB[0], group.weight_KB[0], group.max_frames)


def _epoch(examples, batch_size, buckets, steps_per_group, seed, epoch, shuffle):
    rng = np.random.default_rng((seed, epoch))
    order = _draw(examples, rng) if shuffle else np.arange(len(examples))
    bucket_of = np.searchsorted(buckets, examples.num_frames_N[order])
    groups = []
    for number, max_frames in enumerate(buckets):
        members = order[bucket_of == number]
        batches = [
            _fill(members[i : i + batch_size], batch_size)
            for i in range(0, len(members), batch_size)
        ]
        size = steps_per_group or max(len(batches), 1)
        for i in range(0, len(batches), size):
            part = batches[i : i + size]
            groups.append(
                (np.stack([b[0] for b in part]), np.stack([b[1] for b in part]), max_frames)
            )
    if shuffle:
        groups = [groups[i] for i in rng.permutation(len(groups))]
    return groups


def _draw(examples: Examples, rng: np.random.Generator) -> np.ndarray:
    """As many examples as there are, each corpus as often as its share says, in random order.

    A corpus with fewer examples than its part of the draws is gone through several times; one with more
    gives a random part of itself, another one every epoch.
    """
    if not examples.corpora:
        return rng.permutation(len(examples))
    drawn = []
    # Rounded where each corpus ends, so that the parts add up to as many as there are examples.
    ends = np.round(np.cumsum([share for _, share in examples.corpora]) * len(examples))
    counts = np.diff(ends.astype(int), prepend=0)
    for (members, _), count in zip(examples.corpora, counts, strict=True):
        rounds = max(1, -(-count // len(members)))
        drawn.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:count])
    return rng.permutation(np.concatenate(drawn))


def _fill(members: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    missing = batch_size - len(members)
    index = np.concatenate([members, np.repeat(members[:1], missing)])
    weight = np.concatenate([np.ones(len(members)), np.zeros(missing)]).astype(np.float32)
    return index, weight
