"""What is done to samples before the encoder hears them: speed, loudness, noise, reverberation.

A distortion is written as text and belongs to the utterance (`Utterance.distortion`), so that distorted
copies of a corpus go the way of the corpus itself: read, encoded once, cached under a key of their own.

    speed:0.9              tape speed: slower and deeper, as a larger speaker
    gain:-6                decibels
    white:10  pink:10      noise at that signal-to-noise ratio, decibels
    babble:10:a.ogg|b.ogg  other people talking, from these files
    reverb:0.4             a room whose echo falls by 60 dB in so many seconds

Several are joined with '+', done from left to right. Random numbers come from the samples and the text,
so the same distortion of the same recording is the same everywhere.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import soxr

from tiny_align_jax.data import audio
from tiny_align_jax.types import SAMPLE_RATE_HZ, ConfigError

# Level of the echo against the direct sound. Measured rooms at one or two metres lie around 0 dB
# (Kinoshita et al., REVERB challenge, 2013); a close microphone is drier.
_DIRECT_TO_REVERBERANT_DB = 3.0
_SPEED_RANGE = (0.5, 2.0)


def apply(text: str, waveform_S: np.ndarray) -> np.ndarray:
    """The distorted waveform, float32; another length only after 'speed'.

    Args:
        text: distortions joined with '+'; '' gives the waveform itself.
        waveform_S: samples at 16 kHz.

    Raises:
        ConfigError: an unknown kind or a value that cannot be.
        AudioError: a file of babble that cannot be read.
    """
    for part in filter(None, text.split("+")):
        kind, value, files = _parse(part)
        seed = hashlib.sha256(waveform_S.tobytes() + part.encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(seed))
        waveform_S = _KINDS[kind](waveform_S, value, files, rng).astype(np.float32)
    return waveform_S


def check(text: str) -> None:
    """Raises ConfigError unless `text` is a distortion."""
    for part in filter(None, text.split("+")):
        _parse(part)


def _parse(part: str) -> tuple[str, float, list[str]]:
    kind, _, rest = part.partition(":")
    number, _, files = rest.partition(":")
    if kind not in _KINDS:
        raise ConfigError(
            f"distortion {part!r}: unknown kind {kind!r}; expected one of {', '.join(_KINDS)}"
        )
    try:
        value = float(number)
    except ValueError as error:
        raise ConfigError(f"distortion {part!r}: expected a number after '{kind}:'") from error
    low, high = _SPEED_RANGE
    if kind == "speed" and not low <= value <= high:
        raise ConfigError(f"distortion {part!r}: expected a factor from {low} to {high}")
    if kind == "reverb" and not 0 < value <= 5:
        raise ConfigError(f"distortion {part!r}: expected more than 0 and at most 5 seconds")
    if not np.isfinite(value) or (kind == "babble") != bool(files):
        raise ConfigError(f"distortion {part!r}: expected 'babble:<dB>:<file>|<file>'")
    return kind, value, [f for f in files.split("|") if f]


def _speed(waveform_S, factor, files, rng):
    del files, rng
    return soxr.resample(waveform_S, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)


def _gain(waveform_S, decibels, files, rng):
    del files, rng
    return waveform_S * 10 ** (decibels / 20)


def _white(waveform_S, snr_db, files, rng):
    del files
    return _mix(waveform_S, rng.normal(size=len(waveform_S)), snr_db)


def _pink(waveform_S, snr_db, files, rng):
    """Equal power in every octave: white noise whose amplitude falls with the root of frequency."""
    del files
    spectrum = np.fft.rfft(rng.normal(size=len(waveform_S)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return _mix(waveform_S, np.fft.irfft(spectrum, len(waveform_S)), snr_db)


def _babble(waveform_S, snr_db, files, rng):
    """Every voice as loud as the others, from a random place, repeated where it is too short."""
    noise_S = np.zeros(len(waveform_S))
    for file in files:
        voice_S = np.roll(audio.read_audio(file), rng.integers(1 << 16))
        noise_S += np.resize(voice_S, len(noise_S)) / _rms(voice_S)
    return _mix(waveform_S, noise_S, snr_db)


def _reverb(waveform_S, rt60_s, files, rng):
    """Noise under an exponential decay, behind the direct sound; the tail past the end is cut."""
    del files
    time_s = np.arange(round(rt60_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echo = rng.normal(size=len(time_s)) * 10 ** (-3 * time_s / rt60_s)
    echo *= 10 ** (-_DIRECT_TO_REVERBERANT_DB / 20) / np.sqrt((echo**2).sum())
    echo[0] = 1.0
    size = len(waveform_S) + len(echo) - 1
    wet_S = np.fft.irfft(np.fft.rfft(waveform_S, size) * np.fft.rfft(echo, size), size)
    wet_S = wet_S[: len(waveform_S)]
    return wet_S * (_rms(waveform_S) / _rms(wet_S))


def _mix(waveform_S: np.ndarray, noise_S: np.ndarray, snr_db: float) -> np.ndarray:
    return waveform_S + noise_S * (_rms(waveform_S) / _rms(noise_S) * 10 ** (-snr_db / 20))


def _rms(waveform_S: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform_S, dtype=np.float64))) + 1e-12)


_KINDS: dict[str, Callable] = {
    "speed": _speed,
    "gain": _gain,
    "white": _white,
    "pink": _pink,
    "babble": _babble,
    "reverb": _reverb,
}
