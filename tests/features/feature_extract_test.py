"""Extraction against a tiny fake encoder: right frames, nothing twice, nothing lost."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import linen as nn

from tiny_align_jax.encoders import whisper
from tiny_align_jax.features import cache, extract
from tiny_align_jax.types import AudioError, CacheError, ConfigError, DataError, Utterance

HOP = 320
WINDOW_S = 2.0
TRACES = []


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    dim: int = 3
    num_layers: int = 2


class FakeEncoder(nn.Module):
    """Layer i of a frame is i + scale * the frame's mean sample, in every channel."""

    config: FakeConfig
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, inputs_B, num_samples_B, layers=None):
        TRACES.append(inputs_B.shape)
        scale = self.param("scale", nn.initializers.ones, (self.config.dim,))
        means_BT = inputs_B.reshape(len(inputs_B), -1, HOP).mean(-1)
        means_BT = jnp.where(num_samples_B[:, None] > 0, means_BT, jnp.nan)
        states = [(i + means_BT[..., None] * scale).astype(self.dtype) for i in range(3)]
        return tuple(states[i] for i in (range(3) if layers is None else layers))


def _preprocess(config, waveform_S, window_samples):
    return np.pad(waveform_S, (0, window_samples - len(waveform_S)))


FAKE = types.ModuleType("tiny_align_jax.encoders.fake")
FAKE.Config, FAKE.Encoder = FakeConfig, FakeEncoder
FAKE.preprocess = _preprocess
FAKE.num_frames = lambda config, num_samples: num_samples // HOP
PARAMS = {"scale": jnp.array([1.0, 2.0, 3.0])}


def run(utterances, cache_dir, *, params=PARAMS, fingerprint="f1", **options):
    options = {"window_s": WINDOW_S, "batch_size": 4, "num_workers": 2} | options
    return extract.extract(
        utterances, FAKE, FakeConfig(), params, fingerprint, cache_dir=cache_dir, **options
    )


def never(*args):
    raise AssertionError("the encoder must not be loaded")


@pytest.fixture
def corpus(tmp_path):
    """Ten utterances of 0.3 to 1.65 s in several formats, and the folder of the cache."""
    rng = np.random.default_rng(0)
    utterances = []
    for i in range(10):
        path = tmp_path / f"{i}.{('wav', 'flac', 'ogg')[i % 3]}"
        soundfile.write(path, rng.uniform(-0.5, 0.5, round(16000 * (0.3 + 0.15 * i))), 16000)
        utterances.append(Utterance(f"u{i}", str(path), "text", "s"))
    return utterances


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


def expected(utterance, layer=2):
    samples = soundfile.read(utterance.audio_path, dtype="float32")[0]
    frames_T = samples[: len(samples) // HOP * HOP].reshape(-1, HOP).mean(-1)
    return layer + frames_T[:, None] * np.array([1.0, 2.0, 3.0])


def test_frames_are_the_encoders_whatever_the_batching(corpus, cache_dir):
    features, report = run(corpus, cache_dir)
    assert list(report.keys) == [u.utterance_id for u in corpus]
    assert not report.skipped and not report.truncated and report.num_encoded == 10
    assert report.audio_s == pytest.approx(sum(0.3 + 0.15 * i for i in range(10)), abs=0.01)
    for utterance in corpus:
        frames_TE = features.frames(report.keys[utterance.utterance_id])
        np.testing.assert_allclose(frames_TE, expected(utterance), atol=2e-3)
    assert "10 utterance(s) with frames, 10 of them encoded now" in str(report)


def test_one_compiled_shape(corpus, cache_dir):
    TRACES.clear()
    jax.clear_caches()
    run(corpus, cache_dir)
    assert TRACES == [(4, 32000)]


def test_several_layers_lie_side_by_side(corpus, cache_dir):
    features, report = run(corpus, cache_dir, layers=(0, -1))
    assert features.dim == 6 and features.spec.layers == (0, 2)
    frames_TE = features.frames(report.keys["u3"])
    np.testing.assert_allclose(frames_TE[:, :3], expected(corpus[3], 0), atol=2e-3)
    np.testing.assert_allclose(frames_TE[:, 3:], expected(corpus[3], 2), atol=2e-3)


def test_the_second_time_nothing_is_encoded_or_loaded(corpus, cache_dir):
    first, report = run(corpus, cache_dir)
    second, again = run(corpus, cache_dir, params=never)
    assert again.keys == report.keys and again.num_encoded == 0 and again.compile_s == 0
    np.testing.assert_array_equal(first.frames(report.keys["u5"]), second.frames(report.keys["u5"]))


def test_parameters_may_come_from_a_function(corpus, cache_dir):
    features, report = run(corpus, cache_dir, params=lambda: PARAMS)
    np.testing.assert_allclose(features.frames(report.keys["u0"]), expected(corpus[0]), atol=2e-3)


def test_only_new_utterances_are_encoded(corpus, cache_dir):
    run(corpus[:6], cache_dir)
    _, report = run(corpus, cache_dir)
    assert report.num_encoded == 4 and len(report.keys) == 10


def test_changed_audio_is_encoded_again(corpus, cache_dir):
    _, before = run(corpus, cache_dir)
    soundfile.write(corpus[2].audio_path, np.full(16000, 0.25), 16000, format="OGG")
    features, after = run(corpus, cache_dir)
    assert after.num_encoded == 1 and after.keys["u2"] != before.keys["u2"]
    assert features.frames(after.keys["u2"])[10:30].mean() == pytest.approx(2.5, abs=0.01)


def test_a_new_text_changes_nothing(corpus, cache_dir):
    run(corpus, cache_dir)
    renamed = [dataclasses.replace(u, text="other", speaker_id="t") for u in corpus]
    assert run(renamed, cache_dir, params=never)[1].num_encoded == 0


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "f2"}, {"window_s": 3.0}, {"layers": (1,)}, {"dtype": jnp.bfloat16}],
    ids=str,
)
def test_other_settings_are_another_cache(corpus, cache_dir, change):
    run(corpus, cache_dir)
    assert run(corpus, cache_dir, **change)[1].num_encoded == 10


def test_stretches_of_one_file(corpus, cache_dir):
    whole = corpus[9]
    parts = [
        dataclasses.replace(whole, utterance_id="p0", end_s=0.8),
        dataclasses.replace(whole, utterance_id="p1", start_s=0.8),
    ]
    features, report = run([whole, *parts], cache_dir)
    joined = np.concatenate([features.frames(report.keys[name]) for name in ("p0", "p1")])
    np.testing.assert_array_equal(joined, features.frames(report.keys["u9"]))


def test_the_same_audio_twice_is_encoded_once(corpus, cache_dir):
    twin = dataclasses.replace(corpus[0], utterance_id="twin")
    _, report = run([corpus[0], twin], cache_dir)
    assert report.num_encoded == 1 and report.keys["twin"] == report.keys["u0"]


def test_repeated_ids_are_refused(corpus, cache_dir):
    with pytest.raises(DataError, match="u1"):
        run([*corpus, corpus[1]], cache_dir)


def bad_audio_items(tmp_path):
    """One recording of every bad kind, with a word of the reason for each."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "ten_minutes.flac", np.tile(noise, 600), 16000)
    soundfile.write(tmp_path / "short.wav", noise[:100], 16000)
    soundfile.write(tmp_path / "cut.wav", noise, 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:20000])
    reasons = {
        "missing.wav": "no such", "empty.wav": "empty", "silent.wav": "silent",
        "nan.wav": "NaN", "ten_minutes.flac": "600.0 s", "short.wav": "no frame", "cut.wav": "truncated",
    }  # fmt: skip
    return [(Utterance(n, str(tmp_path / n), "x", "s"), why) for n, why in reasons.items()]


def test_bad_audio_is_skipped_by_name_and_counted(corpus, cache_dir, tmp_path):
    bad = {u.utterance_id: (u, why) for u, why in bad_audio_items(tmp_path)}
    features, report = run([*(u for u, _ in bad.values()), *corpus], cache_dir)
    assert len(report.keys) == report.num_encoded == len(features) == 10
    assert set(report.skipped) == set(bad)
    for name, (utterance, why) in bad.items():
        assert utterance.audio_path in str(report.skipped[name])
        assert why in str(report.skipped[name])
    assert f"{len(bad)} skipped" in str(report) and "skipped silent.wav: " in str(report)
    np.testing.assert_allclose(features.frames(report.keys["u9"]), expected(corpus[9]), atol=2e-3)


def test_bad_audio_as_an_error_lists_all_and_keeps_the_rest(corpus, cache_dir, tmp_path):
    bad = bad_audio_items(tmp_path)
    with pytest.raises(AudioError) as caught:
        run([*(u for u, _ in bad), *corpus], cache_dir, bad_audio="error")
    for utterance, why in bad:
        assert utterance.utterance_id in str(caught.value) and why in str(caught.value)
    assert "10 others are cached" in str(caught.value)
    assert run(corpus, cache_dir, params=never)[1].num_encoded == 0


def test_no_utterance_left(cache_dir, tmp_path):
    with pytest.raises(DataError, match=r"silent\.wav"):
        run([u for u, _ in bad_audio_items(tmp_path)], cache_dir, params=never)
    with pytest.raises(DataError, match="no utterance"):
        run([], cache_dir, params=never)


def test_long_utterances_by_policy(corpus, cache_dir):
    options = {"window_s": 0.8}
    with pytest.raises(AudioError, match=r"window is 0\.80 s.*'skip' or 'truncate'"):
        run(corpus, cache_dir, **options)
    features, report = run(corpus, cache_dir, long="skip", **options)
    assert list(report.skipped) == [f"u{i}" for i in range(4, 10)] and len(report.keys) == 4
    features, report = run(corpus, cache_dir, long="truncate", **options)
    assert report.truncated == tuple(f"u{i}" for i in range(4, 10)) and len(report.keys) == 10
    assert report.num_encoded == 6
    np.testing.assert_allclose(
        features.frames(report.keys["u9"]), expected(corpus[9])[:40], atol=2e-3
    )
    # What one policy cut must not slip through under another.
    _, report = run(corpus, cache_dir, long="skip", params=never, **options)
    assert list(report.skipped) == [f"u{i}" for i in range(4, 10)]
    with pytest.raises(AudioError, match="6 utterance"):
        run(corpus, cache_dir, params=never, **options)


def test_an_encoder_that_gives_nan_is_a_named_skip(corpus, cache_dir):
    params = {"scale": jnp.array([1.0, jnp.nan, 1.0])}
    with pytest.raises(DataError, match="u0: the encoder gave NaN"):
        run(corpus[:2], cache_dir, params=params)


def test_values_beyond_float16_are_clipped(corpus, cache_dir):
    features, report = run(corpus[:1], cache_dir, params={"scale": jnp.full(3, 1e8)})
    assert np.abs(features.frames(report.keys["u0"])).max() == 65504


@pytest.mark.parametrize(
    "options, word",
    [
        ({"layers": (3,)}, "hidden states 0 to 2"),
        ({"layers": ()}, "at least one"),
        ({"window_s": 0}, "window_s"),
        ({"long": "cut"}, "'cut'"),
        ({"bad_audio": "ignore"}, "'ignore'"),
    ],
)
def test_settings_that_cannot_work(corpus, cache_dir, options, word):
    with pytest.raises(ConfigError, match=word):
        run(corpus, cache_dir, **options)


def test_a_full_disk_loses_nothing(corpus, cache_dir, monkeypatch):
    writes = []
    sync = os.fsync

    def full_after_three(descriptor):
        writes.append(descriptor)
        if len(writes) > 5:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_three)
    with pytest.raises(CacheError, match="disk full"):
        run(corpus, cache_dir, shard_bytes=1)
    monkeypatch.undo()
    _, report = run(corpus, cache_dir, shard_bytes=1)
    assert 0 < report.num_encoded < 10 and len(report.keys) == 10


def test_a_killed_run_goes_on_where_it_was(corpus, cache_dir, tmp_path):
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import feature_extract_test as test
        from tiny_align_jax.features import writer
        from tiny_align_jax.types import Utterance
        flush, flushed = writer.CacheWriter.flush, []
        def killing_flush(self):
            flush(self)
            flushed.append(1)
            if len(flushed) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        writer.CacheWriter.flush = killing_flush
        test.run({corpus!r}, {str(cache_dir)!r}, shard_bytes=1)
    """
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode
    assert code == -signal.SIGKILL
    features, report = run(corpus, cache_dir)
    assert report.num_encoded == 6 and len(report.keys) == 10
    for utterance in corpus:
        frames_TE = features.frames(report.keys[utterance.utterance_id])
        np.testing.assert_allclose(frames_TE, expected(utterance), atol=2e-3)


def test_a_damaged_shard_is_encoded_again(corpus, cache_dir):
    features, report = run(corpus, cache_dir, shard_bytes=1)
    shard = features.folder / "shard-00003.npy"
    shard.write_bytes(shard.read_bytes()[:-5])
    features, report = run(corpus, cache_dir)
    assert report.num_encoded == 1 and len(report.keys) == 10
    assert cache.FeatureCache.open(features.folder, checksums=True)


def test_a_cache_that_cannot_be_written_still_serves(corpus, cache_dir, monkeypatch):
    run(corpus, cache_dir)

    def refuse(*args, **options):
        raise AssertionError("nothing is to be written")

    monkeypatch.setattr(extract.writer.CacheWriter, "open", refuse)
    assert len(run(corpus, cache_dir, params=never)[1].keys) == 10


def test_with_whisper(corpus, cache_dir):
    config = whisper.Config(dim=16, num_layers=1, num_heads=2, ffn_dim=32, max_frames=100)
    encoder = whisper.Encoder(config)
    params = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, 32000)), np.ones(1))["params"]
    features, report = extract.extract(
        corpus, whisper, config, params, "w", window_s=2.0, cache_dir=cache_dir, batch_size=4
    )
    samples = soundfile.read(corpus[9].audio_path, dtype="float32")[0]
    inputs = whisper.preprocess(config, samples, 32000)[None]
    direct_TE = jax.jit(encoder.apply)({"params": params}, inputs, np.array([1]))[-1][0]
    frames_TE = features.frames(report.keys["u9"])
    assert len(frames_TE) == whisper.num_frames(config, len(samples))
    np.testing.assert_allclose(frames_TE, direct_TE[: len(frames_TE)], atol=5e-3)
