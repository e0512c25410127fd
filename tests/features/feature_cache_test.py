"""The cache gives back what was written, and never anything stale, half-written or damaged."""

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from tiny_align_jax.features import cache, hashing, writer
from tiny_align_jax.types import AudioError, CacheError

SPEC = cache.Spec("fake Config()", "f" * 64, "1", 16000, (1,), "float32")


def frames_of(seed: int, count: int = 5, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float16)


def write(cache_dir, utterances, *, spec=SPEC, shard_bytes=100):
    with writer.CacheWriter.open(cache_dir, spec, shard_bytes) as sink:
        for name, frames_TE in utterances.items():
            sink.add(spec.key(name), frames_TE, len(frames_TE) * 320)
    return spec.folder(cache_dir)


def open_cache(cache_dir, **options):
    return cache.FeatureCache.open(SPEC.folder(cache_dir), **options)


@pytest.fixture
def utterances():
    return {str(i): frames_of(i, 3 + i) for i in range(7)}


def test_round_trip_over_several_shards(tmp_path, utterances):
    folder = write(tmp_path, utterances)
    assert len(list(folder.glob("shard-*.npy"))) > 2
    features = open_cache(tmp_path, checksums=True)
    assert len(features) == 7 and set(features) == {SPEC.key(name) for name in utterances}
    assert (features.spec, features.dim) == (SPEC, 4)
    for name, expected_TE in utterances.items():
        key = SPEC.key(name)
        np.testing.assert_array_equal(features.frames(key), expected_TE)
        assert features.num_frames(key) == len(expected_TE)
        assert features.num_samples(key) == len(expected_TE) * 320
        assert not features.frames(key).flags.writeable


def test_writing_again_adds_only_what_is_new(tmp_path, utterances):
    folder = write(tmp_path, {"0": utterances["0"]})
    write(tmp_path, {"0": utterances["0"], "1": utterances["1"]})
    features = open_cache(tmp_path)
    assert len(features) == 2
    assert sum(len(np.load(path)) for path in folder.glob("*.npy")) == 3 + 4


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(cache.Spec)])
def test_key_and_folder_change_with_every_field_of_the_spec(tmp_path, field):
    changed = {"window_samples": 8000, "layers": (0, 1)}.get(field, "other")
    other = dataclasses.replace(SPEC, **{field: changed})
    assert other.key("0") != SPEC.key("0")
    assert other.folder(tmp_path) != SPEC.folder(tmp_path)


def test_key_changes_with_the_audio_and_the_stretch():
    keys = {SPEC.key("a"), SPEC.key("b"), SPEC.key("a", 0.5), SPEC.key("a", 0.0, 2.0)}
    assert len(keys) == 4


def test_another_spec_is_refused_with_the_difference(tmp_path, utterances):
    write(tmp_path, utterances)
    other = dataclasses.replace(SPEC, window_samples=32000)
    with pytest.raises(CacheError, match="window_samples is 16000, expected 32000"):
        open_cache(tmp_path, spec=other)


def test_shards_of_another_cache_are_refused(tmp_path, utterances):
    folder = write(tmp_path, utterances)
    other = write(tmp_path, utterances, spec=dataclasses.replace(SPEC, layers=(0,)))
    for path in folder.glob("shard-*"):
        path.replace(other / path.name)
    with pytest.raises(CacheError, match="belongs to another cache"):
        cache.FeatureCache.open(other)


def test_no_cache_and_unknown_key(tmp_path, utterances):
    with pytest.raises(CacheError, match="no feature cache here"):
        cache.FeatureCache.open(tmp_path)
    write(tmp_path, utterances)
    for read in (open_cache(tmp_path).frames, open_cache(tmp_path).num_frames):
        with pytest.raises(CacheError, match="extract_features"):
            read("0" * 64)


def test_damaged_spec_file(tmp_path, utterances):
    folder = write(tmp_path, utterances)
    (folder / cache.SPEC_FILE).write_text('{"encoder": 1}')
    with pytest.raises(CacheError, match=r"cache\.json: damaged"):
        cache.FeatureCache.open(folder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": ("npy", truncate, False),
    "missing": ("npy", lambda path: path.unlink(), False),
    "flipped": ("npy", flip_a_bit, True),
    "sidecar": ("json", truncate, False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_all_listed(tmp_path, utterances, damage):
    suffix, spoil, needs_checksums = DAMAGES[damage]
    folder = write(tmp_path, utterances)
    spoil(folder / f"shard-00000.{suffix}")
    spoil(folder / f"shard-00002.{suffix}")
    if needs_checksums:
        open_cache(tmp_path)
    with pytest.raises(CacheError) as caught:
        open_cache(tmp_path, checksums=needs_checksums)
    for part in ("2 damaged", f"shard-00000.{suffix}", f"shard-00002.{suffix}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "missing", "sidecar"])
def test_the_writer_replaces_damaged_shards(tmp_path, utterances, damage):
    suffix, spoil, _ = DAMAGES[damage]
    folder = write(tmp_path, utterances)
    spoil(folder / f"shard-00001.{suffix}")
    with writer.CacheWriter.open(tmp_path, SPEC, 100) as sink:
        lost = [name for name in utterances if SPEC.key(name) not in sink]
        assert 0 < len(lost) < len(utterances)
    write(tmp_path, utterances)
    features = open_cache(tmp_path, checksums=True)
    for name, expected_TE in utterances.items():
        np.testing.assert_array_equal(features.frames(SPEC.key(name)), expected_TE)


def test_left_overs_of_a_killed_writer_are_ignored_and_swept(tmp_path, utterances):
    folder = write(tmp_path, utterances)
    whole = set(folder.iterdir())
    (folder / "shard-00099.npy").write_bytes(b"data, but not yet described")
    (folder / ".shard-00100.npy.tmp").write_bytes(b"half of it")
    assert len(open_cache(tmp_path)) == len(utterances)
    write(tmp_path, {})
    assert set(folder.iterdir()) == whole


def test_an_exception_keeps_what_was_added(tmp_path, utterances):
    with (
        pytest.raises(KeyboardInterrupt),
        writer.CacheWriter.open(tmp_path, SPEC, 10**9) as sink,
    ):
        sink.add(SPEC.key("0"), utterances["0"], 960)
        raise KeyboardInterrupt
    assert SPEC.key("0") in open_cache(tmp_path)


def test_a_killed_writer_loses_only_the_shard_in_memory(tmp_path, utterances):
    script = f"""
        import os, signal
        import numpy as np
        from tiny_align_jax.features import cache, writer
        spec = cache.{SPEC!r}
        with writer.CacheWriter.open({str(tmp_path)!r}, spec, 100) as sink:
            for i in range(100):
                sink.add(spec.key(str(i)), np.full((5, 4), i, np.float16), 1600)
                if i == 50:
                    os.kill(os.getpid(), signal.SIGKILL)
    """
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode
    assert code == -signal.SIGKILL
    features = open_cache(tmp_path, checksums=True)
    assert 48 <= len(features) <= 51
    np.testing.assert_array_equal(features.frames(SPEC.key("7")), np.full((5, 4), 7, np.float16))


def test_a_full_disk_says_what_to_do_and_keeps_earlier_shards(tmp_path):
    small = {str(i): frames_of(i) for i in range(10)}
    big = {"big": frames_of(99, 100_000)}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CacheError, match="disk full") as caught:
            write(tmp_path, small | big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "features.cache_dir" in str(caught.value)
    assert not list(SPEC.folder(tmp_path).glob(".*.tmp"))
    kept = len(open_cache(tmp_path, checksums=True))
    assert kept >= 8
    write(tmp_path, small | big)
    assert len(open_cache(tmp_path, checksums=True)) == 11


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="cannot write"):
        write(tmp_path, {})


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CacheError, match="cannot write"):
        write(tmp_path / "taken", {})


@pytest.mark.parametrize(
    "frames",
    [np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float16), np.zeros(3, np.float16)],
)
def test_frames_of_the_wrong_kind(tmp_path, frames):
    with pytest.raises(CacheError, match="float16"):
        write(tmp_path, {"0": frames})


def _hold(cache_dir, ready, release):
    with writer.CacheWriter.open(cache_dir, SPEC) as sink:
        ready.set()
        release.wait(20)
        sink.add(SPEC.key("first"), frames_of(0), 1600)


def test_a_second_writer_waits_and_sees_what_the_first_wrote(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(60)
    began_s = time.monotonic()
    release_timer = context.Process(target=_release_later, args=(release,))
    release_timer.start()
    with writer.CacheWriter.open(tmp_path, SPEC) as sink:
        assert SPEC.key("first") in sink
    assert time.monotonic() - began_s > 0.2
    process.join()
    release_timer.join()


def _release_later(release):
    time.sleep(0.3)
    release.set()


def test_random_batches_are_fast(tmp_path):
    utterances = {str(i): frames_of(i, 200, 384) for i in range(200)}
    write(tmp_path, utterances, shard_bytes=2**22)
    features = open_cache(tmp_path)
    keys = list(features)
    rng = np.random.default_rng(0)
    total = sum(float(features.frames(key).sum()) for key in keys)  # every page is read once
    assert np.isfinite(total)
    began_s = time.perf_counter()
    for _ in range(20):
        np.stack([features.frames(keys[i]) for i in rng.integers(0, 200, 32)])
    # 32 utterances are 4.9 MB: under a millisecond each by far, even on a busy machine.
    assert (time.perf_counter() - began_s) / 20 / 32 < 1e-3


def test_hashes_are_remembered_by_size_and_time(tmp_path, monkeypatch):
    audio, memo = tmp_path / "a.wav", tmp_path / "cache" / "memo.json"
    audio.write_bytes(b"one")
    os.utime(audio, (1e9, 1e9))
    first, faults = hashing.hash_files([str(audio)] * 2, memo, 2)
    assert not faults and first[str(audio)] == cache.file_sha256(audio)
    assert list(json.loads(memo.read_text())) == [str(audio)]
    read = []
    monkeypatch.setattr(cache, "file_sha256", lambda path: read.append(path) or "new")
    assert hashing.hash_files([str(audio)], memo, 2)[0] == first and not read
    audio.write_bytes(b"two")
    assert hashing.hash_files([str(audio)], memo, 2)[0] == {str(audio): "new"} and read == [audio]


def test_a_file_changed_just_now_is_hashed_again_next_time(tmp_path):
    audio, memo = tmp_path / "a.wav", tmp_path / "memo.json"
    audio.write_bytes(b"one")
    stat = audio.stat()
    first, _ = hashing.hash_files([str(audio)], memo, 1)
    audio.write_bytes(b"two")
    os.utime(audio, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashing.hash_files([str(audio)], memo, 1)[0] != first


def test_a_damaged_memo_and_a_missing_file(tmp_path):
    audio, memo = tmp_path / "a.wav", tmp_path / "memo.json"
    audio.write_bytes(b"one")
    memo.write_text("{")
    hashes, faults = hashing.hash_files([str(audio), str(tmp_path / "none.wav")], memo, 1)
    assert list(hashes) == [str(audio)]
    assert isinstance(faults[str(tmp_path / "none.wav")], AudioError)
