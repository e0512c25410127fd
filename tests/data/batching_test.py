"""Batches: every example once an epoch, a pure order, shapes from buckets alone."""

import itertools

import numpy as np
import pytest

from tiny_align_jax.data import batching
from tiny_align_jax.types import DataError


def _examples(lengths, width=3):
    lengths = list(lengths)
    targets = [np.arange(1, 2 + i % 4) for i in range(len(lengths))]
    # A frame holds its utterance's number and its own place.
    frames = [
        np.stack([np.full(n, i), *[np.arange(n)] * (width - 1)], 1) for i, n in enumerate(lengths)
    ]
    ids = [f"u{i}" for i in range(len(lengths))]
    return batching.make_examples(ids, lengths, targets, lambda i: frames[i].astype(np.float16))


def _random(count=53, seed=0):
    return _examples(np.random.default_rng(seed).integers(1, 400, count))


def _take(examples, num_groups, **options):
    options = {"batch_size": 8, "steps_per_group": 1, "seed": 0} | options
    buckets = batching.bucket_lengths(examples.num_frames_N, options.pop("num_buckets", 3))
    groups = batching.schedule(examples, buckets=buckets, **options)
    return list(itertools.islice(groups, num_groups))


def _steps(groups):
    """(step, bucket, rows, weights) of every step, groups taken apart."""
    for group in groups:
        for k, (index, weight) in enumerate(zip(group.index_KB, group.weight_KB, strict=True)):
            yield group.first_step + k, group.max_frames, index.tolist(), weight.tolist()


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 7])
@pytest.mark.parametrize("lengths", [[5], [32], [33] * 4, range(1, 200), [1, 1, 1, 500]], ids=str)
def test_buckets_hold_everything_and_are_multiples(lengths, num_buckets):
    lengths = np.array(list(lengths))
    buckets = batching.bucket_lengths(lengths, num_buckets)
    assert list(buckets) == sorted(set(buckets)) and len(buckets) <= num_buckets
    assert all(b % batching.BUCKET_MULTIPLE_FRAMES == 0 for b in buckets)
    assert 0 <= buckets[-1] - lengths.max() < batching.BUCKET_MULTIPLE_FRAMES


def test_buckets_share_the_utterances():
    examples = _random(300)
    buckets = batching.bucket_lengths(examples.num_frames_N, 3)
    counts = np.bincount(np.searchsorted(buckets, examples.num_frames_N))
    assert len(counts) == 3 and counts.min() > 0.8 * 100


@pytest.mark.parametrize("steps_per_group", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 8, 200])
def test_every_example_once_an_epoch_in_a_bucket_that_holds_it(batch_size, steps_per_group):
    examples = _random()
    seen, epochs = [], 0
    options = {"batch_size": batch_size, "steps_per_group": steps_per_group}
    for step, (at, max_frames, index, weight) in enumerate(_steps(_take(examples, 200, **options))):
        assert at == step and len(index) == batch_size
        real = [i for i, w in zip(index, weight, strict=True) if w]
        assert set(weight) <= {0.0, 1.0} and weight == sorted(weight, reverse=True)
        assert set(index) == set(real)  # fill rows repeat a real one
        assert examples.num_frames_N[index].max() <= max_frames
        seen += real
        if len(seen) == len(examples):
            assert sorted(seen) == list(range(len(examples)))
            seen, epochs = [], epochs + 1
    assert epochs >= 2


def test_without_a_limit_a_group_is_all_of_an_epoch_in_one_bucket():
    examples = _random()
    groups = _take(examples, 6, steps_per_group=0)
    buckets = batching.bucket_lengths(examples.num_frames_N, 3)
    for epoch in (groups[:3], groups[3:]):
        assert {group.max_frames for group in epoch} == set(buckets)
        assert sum(group.weight_KB.sum() for group in epoch) == len(examples)


def test_order_is_a_function_of_seed_and_epoch():
    examples = _random()
    first, again = _take(examples, 60), _take(examples, 60)
    assert list(_steps(first)) == list(_steps(again))
    assert list(_steps(first)) != list(_steps(_take(examples, 60, seed=1)))
    per_epoch = len(
        list(batching.one_epoch(examples, 8, batching.bucket_lengths(examples.num_frames_N, 3)))
    )
    rows = [index for _, _, index, _ in _steps(first)]
    assert rows[:per_epoch] != rows[per_epoch : 2 * per_epoch]


@pytest.mark.parametrize("steps_per_group", [1, 5])
@pytest.mark.parametrize("first_step", [1, 4, 8, 23, 57])
def test_resumes_at_any_step(first_step, steps_per_group):
    examples = _random()
    whole = list(_steps(_take(examples, 80, steps_per_group=steps_per_group)))
    options = {"steps_per_group": steps_per_group, "first_step": first_step}
    rest = list(_steps(_take(examples, 10, **options)))
    assert rest == whole[first_step : first_step + len(rest)]


def test_a_group_never_mixes_buckets():
    groups = _take(_random(), 40, steps_per_group=3)
    assert {len(g.index_KB) for g in groups} <= {1, 2, 3}
    assert len({g.max_frames for g in groups}) == 3


def test_one_epoch_keeps_the_order_within_a_bucket():
    examples = _examples([300, 10, 290, 20, 30])
    groups = list(batching.one_epoch(examples, 2, (32, 320)))
    assert [g.index_KB.tolist() for g in groups] == [[[1, 3]], [[4, 4]], [[0, 2]]]
    assert [g.weight_KB.tolist() for g in groups] == [[[1, 1]], [[1, 0]], [[1, 1]]]


def test_gather_pads_with_zeros_and_keeps_the_cache_dtype():
    examples = _examples([3, 7, 5])
    batch = batching.gather(examples, np.array([2, 0, 2]), np.array([1, 1, 0], np.float32), 32)
    assert batch.features_BTE.shape == (3, 32, 3) and batch.features_BTE.dtype == np.float16
    for row, index in enumerate((2, 0, 2)):
        count = examples.num_frames_N[index]
        np.testing.assert_array_equal(batch.features_BTE[row, :count], examples.frames(index))
        assert not batch.features_BTE[row, count:].any()
    np.testing.assert_array_equal(batch.num_frames_B, [5, 3, 5])
    np.testing.assert_array_equal(batch.num_targets_B, [3, 1, 3])
    np.testing.assert_array_equal(batch.target_ids_BL, [[1, 2, 3], [1, 0, 0], [1, 2, 3]])
    assert batch.index_B.dtype == np.int32


def test_one_utterance_fills_a_batch():
    group = _take(_examples([40]), 1, batch_size=4)[0]
    assert group.index_KB.tolist() == [[0] * 4] and group.weight_KB.tolist() == [[1, 0, 0, 0]]
    assert group.max_frames == 64


def test_errors_name_the_utterance():
    with pytest.raises(DataError, match="no usable utterances"):
        batching.make_examples([], [], [], None)
    with pytest.raises(DataError, match=r"'u1' has 99 frames, the largest bucket holds 64"):
        next(batching.schedule(_examples([3, 99]), 2, (32, 64), 1, 0))
