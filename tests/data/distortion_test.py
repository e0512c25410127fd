"""Distortions: the level that was asked for, the same samples again, and wrong texts by name."""

import numpy as np
import pytest
import soundfile

from tiny_align_jax.data import distortion
from tiny_align_jax.types import ConfigError

RNG = np.random.default_rng(0)
SPEECH = (0.1 * RNG.normal(size=16_000) * (1 + np.sin(np.arange(16_000) / 900))).astype(np.float32)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", 0.2 * RNG.normal(size=9000), 16_000)
    return f"{folder / 'a.wav'}|{folder / 'b.wav'}"


@pytest.mark.parametrize("kind", ["white", "pink", "babble"])
@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_level_that_was_asked_for(kind, snr_db, voices):
    text = f"{kind}:{snr_db}" + (f":{voices}" if kind == "babble" else "")
    noisy = distortion.apply(text, SPEECH)
    noise = noisy.astype(np.float64) - SPEECH
    measured_db = 10 * np.log10((SPEECH.astype(np.float64) ** 2).mean() / (noise**2).mean())
    assert measured_db == pytest.approx(snr_db, abs=0.05)
    np.testing.assert_array_equal(distortion.apply(text, SPEECH), noisy)
    assert np.abs(distortion.apply(text, 1.001 * SPEECH) - noisy).max() > 1e-3


def test_pink_noise_has_equal_power_in_every_octave():
    silence = np.full(1 << 16, 1e-3, np.float32)
    noise = distortion.apply("pink:0", silence) - silence
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[1 << i : 2 << i].sum() for i in range(7, 15)]
    assert max(octaves) / min(octaves) < 1.6


def test_speed_changes_length_and_pitch_together():
    tone = np.sin(2 * np.pi * 400 * np.arange(16_000) / 16_000).astype(np.float32)
    slow = distortion.apply("speed:0.8", tone)
    assert len(slow) == 20_000
    peak_hz = np.abs(np.fft.rfft(slow)).argmax() * 16_000 / len(slow)
    assert peak_hz == pytest.approx(320, abs=2)


def test_reverberation_keeps_loudness_and_smears_forward_only():
    click = np.zeros(8000, np.float32)
    click[2000] = 1.0
    wet = distortion.apply("reverb:0.3", click)
    assert not np.abs(wet[:1999]).max() > 1e-6
    tail = [np.abs(wet[2000 + i * 1000 : 3000 + i * 1000]).mean() for i in range(1, 4)]
    assert tail == sorted(tail, reverse=True) and tail[0] > 0
    assert (wet**2).sum() == pytest.approx((click**2).sum(), rel=1e-3)


def test_several_are_done_from_left_to_right():
    both = distortion.apply("gain:-6+white:10", SPEECH)
    step = distortion.apply("white:10", distortion.apply("gain:-6", SPEECH))
    np.testing.assert_array_equal(both, step)
    np.testing.assert_array_equal(distortion.apply("", SPEECH), SPEECH)


@pytest.mark.parametrize(
    "text",
    ["hum:3", "white", "white:loud", "speed:0", "speed:9", "reverb:0", "babble:3", "gain:nan"],
)
def test_wrong_texts_are_named(text):
    with pytest.raises(ConfigError, match="distortion"):
        distortion.check(text)
