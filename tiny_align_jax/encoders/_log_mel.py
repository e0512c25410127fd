"""Whisper's log-mel spectrogram as one jittable function over a batch of waveforms.

It runs on the accelerator inside the encoder, so a corpus goes from samples to frames without a
host step. Always float32: a bfloat16 spectrogram loses the quiet half of its 80 dB range.

Source: Radford et al. 2022 (arXiv 2212.04356), section 2.2; constants as released in openai/whisper.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.types import SAMPLE_RATE_HZ, Array

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
POWER_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # in log10 of power: 80 dB below the loudest bin of the window

# Slaney's mel scale: linear below 1 kHz (15 mels), then 27 mels for every factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_MELS_PER_NEPER = 27.0 / np.log(6.4)


def log_mel(waveform_BS: Array, num_mels: int) -> jax.Array:
    """Log-mel spectrogram [B, S // 160, num_mels], float32.

    Each row is scaled by its own loudest bin, so rows do not influence each other.

    Args:
        waveform_BS: samples at 16 kHz, zero (silence) after the utterance.
        num_mels: 80, or 128 for large-v3 and turbo.
    """
    power_BFK = _power_spectrogram(jnp.asarray(waveform_BS, jnp.float32))
    # HIGHEST: the default float32 product on recent GPUs keeps 10 bits of mantissa.
    mel_BFM = jnp.matmul(power_BFK, mel_filters(num_mels), precision=jax.lax.Precision.HIGHEST)
    log_BFM = jnp.log10(jnp.maximum(mel_BFM, POWER_FLOOR))
    loudest_B11 = jnp.max(log_BFM, axis=(1, 2), keepdims=True)
    return (jnp.maximum(log_BFM, loudest_B11 - DYNAMIC_RANGE) + 4.0) / 4.0


def _power_spectrogram(waveform_BS: jax.Array) -> jax.Array:
    """Power of a centred short-time Fourier transform, [B, S // 160, 201].

    The frame centred after the last full hop is left out, as Whisper's training did.
    """
    half = FFT_SAMPLES // 2
    padded = jnp.pad(waveform_BS, ((0, 0), (half, half)), mode="reflect")
    starts_F1 = HOP_SAMPLES * np.arange(waveform_BS.shape[1] // HOP_SAMPLES)[:, None]
    frames_BFN = padded[:, starts_F1 + np.arange(FFT_SAMPLES)]
    # Periodic Hann window: np.hanning is the symmetric one.
    window_N = np.hanning(FFT_SAMPLES + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(frames_BFN * window_N)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


@functools.lru_cache
def mel_filters(num_mels: int) -> np.ndarray:
    """Triangular filters of unit area [201, num_mels], float32, from 0 to 8 kHz on Slaney's scale."""
    bins_K1 = np.linspace(0.0, SAMPLE_RATE_HZ / 2, FFT_SAMPLES // 2 + 1)[:, None]
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE_HZ / 2), num_mels + 2))
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins_K1 - low) / (centre - low)
    falling = (high - bins_K1) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (high - low)).astype(np.float32)


def _hz_to_mel(hz: float) -> float:
    """Mels of a frequency above the 1 kHz break."""
    return _BREAK_MEL + _MELS_PER_NEPER * np.log(hz / _BREAK_HZ)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above_break = _BREAK_HZ * np.exp((mel - _BREAK_MEL) / _MELS_PER_NEPER)
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above_break)
