"""Whisper's own arithmetic: mel filters, windows, positions."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from tiny_align_jax.encoders import _log_mel, whisper
from tiny_align_jax.types import ConfigError


@pytest.mark.parametrize("num_mels", [80, 128])
def test_mel_filters_equal_librosas(num_mels):
    expected = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=num_mels).T
    np.testing.assert_allclose(_log_mel.mel_filters(num_mels), expected, atol=1e-8)


def test_log_mel_of_a_tone_peaks_in_its_band():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    mel = np.asarray(_log_mel.log_mel(tone[None], 80))
    assert mel.shape == (1, 100, 80)
    centres_hz = np.arange(201) * 40 @ _log_mel.mel_filters(80)
    centres_hz /= _log_mel.mel_filters(80).sum(axis=0)
    assert abs(centres_hz[mel[0, 50].argmax()] - 1000) < 30
    assert mel.max() - mel.min() <= _log_mel.DYNAMIC_RANGE / 4 + 1e-6


def test_log_mel_rows_are_scaled_apart():
    rng = np.random.default_rng(0)
    quiet = 1e-3 * rng.standard_normal(8000).astype(np.float32)
    loud = rng.standard_normal(8000).astype(np.float32)
    both = _log_mel.log_mel(np.stack([quiet, loud]), 80)
    np.testing.assert_allclose(both[:1], _log_mel.log_mel(quiet[None], 80), atol=1e-5)


def test_log_mel_of_silence_is_finite():
    assert np.isfinite(_log_mel.log_mel(np.zeros((1, 3200), np.float32), 80)).all()


@pytest.mark.parametrize("samples, frames", [(0, 0), (1, 1), (320, 1), (321, 2), (480_000, 1500)])
def test_num_frames(samples, frames):
    assert whisper.num_frames(whisper.Config(), samples) == frames


def test_window_grows_to_whole_frames():
    assert whisper.preprocess(whisper.Config(), np.ones(500), 1000).shape == (1280,)


def test_window_beyond_the_position_table_is_refused():
    config = whisper.Config()
    assert whisper.preprocess(config, np.ones(10), 480_000).shape == (480_000,)
    with pytest.raises(ConfigError, match=r"480320 samples needs 1501 frames.* 1500 .*480000"):
        whisper.preprocess(config, np.ones(10), 480_320)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"dim 10 .* num_heads 4"):
        whisper.Config(dim=10, num_heads=4)


@pytest.mark.parametrize(
    "change", [{"activation_function": "relu"}, {"scale_embedding": True}, {"num_mel_bins": None}]
)
def test_values_that_are_not_implemented_are_refused(change):
    hf = {
        "model_type": "whisper",
        "d_model": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 8,
        "num_mel_bins": 80,
        "max_source_positions": 10,
    }
    whisper.config_from_hf(hf)
    with pytest.raises(ConfigError, match=next(iter(change))):
        whisper.config_from_hf(hf | change)


def test_preprocessor_must_agree_with_the_checkpoint():
    hf = {
        "model_type": "whisper",
        "d_model": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 8,
        "num_mel_bins": 128,
        "max_source_positions": 10,
    }
    whisper.config_from_hf(hf, {"feature_size": 128, "sampling_rate": 16_000})
    with pytest.raises(ConfigError, match=r"feature_size=80.*sampling_rate=8000"):
        whisper.config_from_hf(hf, {"feature_size": 80, "sampling_rate": 8000})


def test_spectrogram_stays_float32_in_a_bfloat16_encoder():
    """A bfloat16 log-mel would lose steps of 0.01; the encoder casts only its result."""
    jaxpr = str(jax.make_jaxpr(lambda x: _log_mel.log_mel(x, 80))(jnp.zeros((1, 3200))))
    assert "bf16" not in jaxpr
    config = whisper.Config(dim=8, num_layers=1, num_heads=2, ffn_dim=8, max_frames=10)
    encoder = whisper.Encoder(config, jnp.bfloat16)
    inputs = jnp.ones((1, 3200), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), inputs, None)
    jaxpr = str(jax.make_jaxpr(lambda v: encoder.apply(v, inputs, None))(variables))
    assert "f32[1,20,80]" in jaxpr and "bf16[1,20,80]" in jaxpr
