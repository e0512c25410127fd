"""Every format reads alike, and every bad recording is named with its reason."""

import numpy as np
import pytest
import soundfile

from tiny_align_jax.data import audio
from tiny_align_jax.types import SAMPLE_RATE_HZ, AudioError


def tone(seconds: float, rate_hz: int, frequency_hz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def write(path, samples, rate_hz=SAMPLE_RATE_HZ, **options):
    soundfile.write(path, samples, rate_hz, **options)
    return path


def dominant_hz(waveform_S: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform_S))
    return float(np.fft.rfftfreq(len(waveform_S), 1 / SAMPLE_RATE_HZ)[spectrum.argmax()])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_rate_and_channel_count_reads_as_mono_16_khz(
    tmp_path, suffix, rate_hz, channels
):
    samples = np.stack([tone(1.5, rate_hz)] * channels, axis=1)
    waveform_S = audio.read_audio(write(tmp_path / f"a.{suffix}", samples, rate_hz))
    assert waveform_S.dtype == np.float32 and waveform_S.ndim == 1
    assert abs(len(waveform_S) - 1.5 * SAMPLE_RATE_HZ) < 0.05 * SAMPLE_RATE_HZ
    assert abs(dominant_hz(waveform_S) - 440) < 2
    assert 0.25 < np.abs(waveform_S[2000:-2000]).max() < 0.35


def test_wav_at_16_khz_is_read_exactly(tmp_path):
    samples = tone(0.5, SAMPLE_RATE_HZ)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read_audio(path), samples)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(0.5, SAMPLE_RATE_HZ), np.zeros(8000, np.float32)], axis=1)
    waveform_S = audio.read_audio(write(tmp_path / "a.wav", stereo, subtype="FLOAT"))
    np.testing.assert_allclose(waveform_S, stereo[:, 0] / 2, atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_stretch_equals_the_slice_of_the_whole(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = write(tmp_path / f"a.{suffix}", rng.normal(0, 0.1, 32000))
    whole_S = audio.read_audio(path)
    part_S = audio.read_audio(path, 0.25, 1.0)
    np.testing.assert_allclose(part_S, whole_S[4000:16000], atol=1e-6)


def test_an_end_slightly_past_the_file_is_taken_as_its_end(tmp_path):
    path = write(tmp_path / "a.wav", tone(1.0, SAMPLE_RATE_HZ))
    assert len(audio.read_audio(path, 0.5, 1.2)) == 8000


def refuse(path, *words, **options):
    """The error of reading `path`, which must name the file and hold every word."""
    with pytest.raises(AudioError) as caught:
        audio.read_audio(path, **options)
    for word in (path.name, *words):
        assert word in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    refuse(tmp_path / "none.wav", "no such audio file")
    refuse(tmp_path, "no such audio file")


def test_empty_files(tmp_path):
    (tmp_path / "zero.wav").touch()
    refuse(tmp_path / "zero.wav", "empty")
    refuse(write(tmp_path / "header.wav", np.zeros(0)), "empty")


def test_not_audio(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("this is not audio " * 50)
    refuse(path, "cannot decode")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("kept", [0.6, 0.9])
def test_truncated(tmp_path, suffix, kept):
    path = write(tmp_path / f"a.{suffix}", np.random.default_rng(0).normal(0, 0.1, 48000))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refuse(path, "truncated")


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_streamed_through_a_pipe_is_whole(tmp_path, size):
    path = write(tmp_path / "a.wav", tone(1.0, SAMPLE_RATE_HZ))
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(audio.read_audio(path)) == SAMPLE_RATE_HZ


def test_silence_is_refused_unless_asked_for(tmp_path):
    path = write(tmp_path / "a.wav", np.full(16000, 1e-5), subtype="FLOAT")
    refuse(path, "silent", "1.0e-05")
    assert len(audio.read_audio(path, min_peak=0.0)) == 16000


def test_a_silent_stretch_of_a_spoken_file(tmp_path):
    samples = np.concatenate([tone(1.0, SAMPLE_RATE_HZ), np.zeros(16000)])
    refuse(write(tmp_path / "a.wav", samples), "silent", start_s=1.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_samples(tmp_path, value):
    samples = tone(1.0, SAMPLE_RATE_HZ)
    samples[100] = value
    refuse(write(tmp_path / "a.wav", samples, subtype="FLOAT"), "NaN or infinite", "1 sample")


def test_ten_minutes_names_length_and_limit(tmp_path):
    path = write(tmp_path / "a.flac", np.tile(tone(1.0, SAMPLE_RATE_HZ), 600))
    refuse(path, "600.0 s", "60.0 s")
    assert len(audio.read_audio(path, 599.0)) == SAMPLE_RATE_HZ
    assert len(audio.read_audio(path, max_s=None)) == 600 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("start_s, end_s", [(2.0, None), (-0.1, 0.5), (0.5, 0.5), (0.8, 0.2)])
def test_a_stretch_outside_the_file(tmp_path, start_s, end_s):
    path = write(tmp_path / "a.wav", tone(1.0, SAMPLE_RATE_HZ))
    refuse(path, "1.000 s long", start_s=start_s, end_s=end_s)


def test_an_end_far_past_the_file(tmp_path):
    refuse(write(tmp_path / "a.wav", tone(1.0, SAMPLE_RATE_HZ)), "before end_s", end_s=3.0)
