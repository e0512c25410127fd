"""Reads audio of any rate, channel count and format as mono float32 at 16 kHz.

Whatever is wrong with a recording becomes one `AudioError` that names the file, so that a caller can
skip it by name or stop. libsndfile alone is not enough for that: it reads the rest of a cut-off WAV or
Ogg file without complaint (its log says so, which is what `_check_complete` reads), and it decodes
silence and NaN as gladly as speech.
"""

import pathlib
import re

import numpy as np
import soundfile
import soxr

from tiny_align_jax.types import SAMPLE_RATE_HZ, AudioError

# Peak below which a recording counts as silent: -80 dBFS, about three steps of 16-bit audio, far below
# the noise floor of any microphone and above dither.
SILENCE_PEAK = 1e-4
# The longest utterance read unless the caller says otherwise. An encoder's window is 30 s or less; ten
# minutes here means a file whose time marks are missing.
MAX_UTTERANCE_S = 60.0
# Time marks made by hand or by a forced aligner end a little after the file now and then.
END_TOLERANCE_S = 0.5
# Sizes that writers to a pipe leave in a WAV header because they cannot go back to fill it in.
_STREAMED_SIZES = frozenset({0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFF000, 0xFFFFF000})
_WAV_SIZE = re.compile(r"data : (\d+) \(should be (\d+)\)")
_CUT_MARKS = ("lacks an end-of-stream bit", "> file length")


def read_audio(
    path: str | pathlib.Path,
    start_s: float = 0.0,
    end_s: float | None = None,
    *,
    max_s: float | None = MAX_UTTERANCE_S,
    min_peak: float = SILENCE_PEAK,
) -> np.ndarray:
    """Mono 16 kHz samples of a file, or of the stretch from `start_s` to `end_s`.

    Args:
        path: wav, flac, ogg, mp3 or anything else libsndfile reads.
        start_s: start of the stretch, seconds.
        end_s: end of the stretch, seconds; None means the end of the file.
        max_s: longest stretch accepted, seconds; None means any length.
        min_peak: largest absolute sample below which the stretch is refused as silent; 0 accepts
            silence.

    Returns:
        waveform_S, float32; channels are averaged, so that speech on one channel of two survives.

    Raises:
        AudioError: missing, empty, truncated, unreadable, silent, NaN or infinite, longer than
            `max_s`, or a stretch outside the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AudioError(
            f"{path}: no such audio file; check the corpus root and the manifest's path"
        )
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the audio file is empty (0 bytes); copy or record it again")
    try:
        with soundfile.SoundFile(path) as file:
            samples_SC, rate_hz = _read_stretch(file, path, start_s, end_s, max_s), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{path}: cannot decode ({error}); the file is damaged, truncated or not audio"
        ) from error
    _check_samples(samples_SC, path)
    waveform_S = samples_SC.mean(axis=1) if samples_SC.shape[1] > 1 else samples_SC[:, 0]
    peak = float(np.abs(waveform_S).max())
    if peak < min_peak:
        raise AudioError(
            f"{path}: silent (peak {peak:.1e} of full scale, expected >= {min_peak:.1e})"
        )
    if rate_hz == SAMPLE_RATE_HZ:
        return np.ascontiguousarray(waveform_S)
    return soxr.resample(waveform_S, rate_hz, SAMPLE_RATE_HZ)


def _read_stretch(
    file: soundfile.SoundFile,
    path: pathlib.Path,
    start_s: float,
    end_s: float | None,
    max_s: float | None,
) -> np.ndarray:
    """Decodes [start_s, end_s) as float32 [samples, channels] at the file's own rate."""
    length_s = file.frames / file.samplerate
    if file.frames == 0:
        raise AudioError(f"{path}: the audio file is empty (its header, but no samples)")
    _check_complete(file, path)
    if start_s < 0 or start_s >= length_s or (end_s is not None and end_s <= start_s):
        end = "the end" if end_s is None else f"{end_s:.3f} s"
        raise AudioError(
            f"{path}: no audio from {start_s:.3f} s to {end}; the file is {length_s:.3f} s long and "
            "a stretch needs 0 <= start_s < end_s"
        )
    if end_s is not None and end_s > length_s + END_TOLERANCE_S:
        raise AudioError(f"{path}: ends at {length_s:.3f} s, before end_s = {end_s:.3f} s")
    stop_s = length_s if end_s is None else min(end_s, length_s)
    if max_s is not None and stop_s - start_s > max_s:
        raise AudioError(
            f"{path}: {stop_s - start_s:.1f} s long, the limit is {max_s:.1f} s; cut it into "
            "utterances, give start_s and end_s, or raise the limit"
        )
    start, stop = round(start_s * file.samplerate), round(stop_s * file.samplerate)
    if start:
        file.seek(start)
    samples_SC = file.read(stop - start, dtype="float32", always_2d=True)
    # MP3 headers state the length of the whole recording; a cut file just decodes to fewer samples.
    if len(samples_SC) < stop - start - round(0.1 * file.samplerate):
        _raise_truncated(
            path, f"{start_s + len(samples_SC) / file.samplerate:.2f} of {stop_s:.2f} s"
        )
    if len(samples_SC) == 0:
        raise AudioError(f"{path}: no samples from {start_s:.3f} s to {stop_s:.3f} s")
    return samples_SC


def _check_complete(file: soundfile.SoundFile, path: pathlib.Path) -> None:
    """Refuses a file whose header promises more than is there, as libsndfile's log tells."""
    log = file.extra_info
    size = _WAV_SIZE.search(log)
    if size:
        stated, found = int(size.group(1)), int(size.group(2))
        if stated > found and stated not in _STREAMED_SIZES:
            _raise_truncated(path, f"{found} of {stated} bytes")
    if any(mark in log for mark in _CUT_MARKS):
        _raise_truncated(path, "the last block is missing")


def _check_samples(samples_SC: np.ndarray, path: pathlib.Path) -> None:
    if not np.isfinite(samples_SC).all():
        bad = int(samples_SC.size - np.isfinite(samples_SC).sum())
        raise AudioError(f"{path}: {bad} sample(s) are NaN or infinite; export the recording again")


def _raise_truncated(path: pathlib.Path, found: str) -> None:
    raise AudioError(f"{path}: truncated ({found}); copy or download the file again")
