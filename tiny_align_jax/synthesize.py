"""Speaks text with a local voice: Piper (neural, `pip install piper-tts`), or the programs espeak-ng and flite.

One voice becomes several speakers: pitch and formants move together by playing the samples at another
rate, as a shorter or longer vocal tract does, while the tempo is kept by asking the voice for slower or
faster speech. Rendering goes block by block; a block's random numbers are seeded by its content, so the
same request gives the same samples on the same machine however often it is interrupted.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Protocol, TypeVar

import numpy as np
import soundfile
import soxr
import tqdm
from absl import logging

from tiny_align_jax import accents
from tiny_align_jax.types import SAMPLE_RATE_HZ, AssetError, CacheError, ConfigError, DataError

ENGINES = ("auto", "piper", "espeak-ng", "flite")
# Utterances between two seeds. A Piper session takes 0.6 s to load and must be new for its random
# numbers to start anew; a killed run repeats at most one block a thread.
BLOCK = 32
_EDGE_S = 0.15  # silence before and after an utterance
# Raise whenever the same lines would be spoken otherwise: it names the folders of recordings.
VERSION = 1
_HOW_TO = (
    "install the `tts` extra (pip install piper-tts) and fetch the voice "
    "(python -m experiments.fetch_assets --assets=piper-en-us-joe-medium), or install the espeak-ng "
    "program"
)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """How a voice is made to sound like somebody else.

    Attributes:
        name: speaker id.
        pitch: factor on pitch and formants; above 1 is a smaller speaker.
        tempo: factor on the speed of speech.
        noise: how much timbre varies from moment to moment (Piper's noise_scale).
        rhythm: how much durations vary (Piper's noise_w_scale).
        gain_db: loudness below full scale.
        accent: strength of a Mandarin accent, 0 to 1 (Piper only).
    """

    name: str
    pitch: float = 1.0
    tempo: float = 1.0
    noise: float = 0.667
    rhythm: float = 0.8
    gain_db: float = -3.0
    # Not shown, so that recordings made before there were accents keep their folders and their seeds.
    accent: float = dataclasses.field(default=0.0, repr=False)


@dataclasses.dataclass(frozen=True)
class Line:
    """One utterance to speak."""

    utterance_id: str
    text: str
    speaker: Speaker


AnyLine = TypeVar("AnyLine", bound=Line)


class Engine(Protocol):
    """A voice. `session` gives a function that speaks, with its own seeded random numbers."""

    fingerprint: str

    def session(self, seed: int) -> Callable[[str, Speaker], tuple[np.ndarray, float]]:
        """A function from text and speaker to samples and the rate to play them at, in Hz."""
        ...


def speakers(count: int, max_pitch: float = 1.26) -> tuple[Speaker, ...]:
    """`count` different speakers; the first few are as far apart as any."""
    return tuple(_speaker(index, max_pitch) for index in range(count))


def _speaker(index: int, max_pitch: float) -> Speaker:
    # Multiples of irrational numbers fill the ranges evenly however many speakers there are.
    unit = [(0.5 + index * step) % 1.0 for step in (0.618034, 0.754878, 0.569840, 0.819173)]
    return Speaker(
        name=f"voice{index:02d}",
        pitch=round(0.86 + (max_pitch - 0.86) * unit[0], 3),
        tempo=round(0.88 + 0.27 * unit[1], 3),
        noise=round(0.45 + 0.35 * unit[2], 3),
        rhythm=round(0.60 + 0.35 * unit[3], 3),
        gain_db=round(-3.0 - 9.0 * unit[2], 1),
    )


def find_engine(engine: str, voice: str | pathlib.Path) -> Engine:
    """The engine to speak with; 'auto' is Piper if it and a voice are there, else espeak-ng.

    Args:
        engine: one of ENGINES.
        voice: for Piper, folder with one `.onnx` file and its `.onnx.json`; for espeak-ng, a voice
            name such as 'en-us' (a folder means 'en-us'); for flite, one that `flite -lv` names.

    Raises:
        ConfigError: unknown engine.
        AssetError: engine or voice not there.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}, expected one of {', '.join(ENGINES)}")
    if engine == "espeak-ng":
        return Espeak("en-us" if not voice or pathlib.Path(voice).is_dir() else str(voice))
    if engine == "flite":
        return Flite(str(voice) or "slt")
    try:
        return Piper(voice)
    except AssetError as error:
        if engine == "piper" or shutil.which("espeak-ng") is None:
            raise
        logging.warning("speaking with espeak-ng instead of Piper: %s", error)
        return Espeak("en-us")


class Piper:
    """A Piper voice: a VITS network run by onnxruntime, one thread a session."""

    _seeding = threading.Lock()

    def __init__(self, voice: str | pathlib.Path) -> None:
        """Reads the voice's description; the network itself is loaded by `session`.

        Raises:
            AssetError: no piper-tts or onnxruntime, or no voice in the folder.
        """
        missing = [m for m in ("piper", "onnxruntime") if importlib.util.find_spec(m) is None]
        if missing:
            raise AssetError(f"cannot speak without {' and '.join(missing)}; {_HOW_TO}")
        models = sorted(pathlib.Path(voice).glob("*.onnx")) if voice else []
        if len(models) != 1 or not models[0].with_suffix(".onnx.json").is_file():
            raise AssetError(
                f"voice folder {str(voice)!r}: expected one .onnx file with its .onnx.json; {_HOW_TO}"
            )
        self._model = models[0]
        with open(models[0], "rb") as file:
            self.fingerprint = f"piper {hashlib.file_digest(file, 'sha256').hexdigest()}"

    def session(self, seed: int) -> Callable[[str, Speaker], tuple[np.ndarray, float]]:
        # Imported here: a run that only reads what was spoken before must not carry them in memory.
        import onnxruntime
        from piper import PiperVoice, SynthesisConfig
        from piper.config import PiperConfig

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # onnxruntime reads its one global seed while it builds a session.
        with self._seeding:
            onnxruntime.set_seed(seed)
            network = onnxruntime.InferenceSession(
                str(self._model), sess_options=options, providers=["CPUExecutionProvider"]
            )
        rng = np.random.default_rng(seed)
        description = json.loads(self._model.with_suffix(".onnx.json").read_text(encoding="utf-8"))
        voice = PiperVoice(session=network, config=PiperConfig.from_dict(description))

        def speak(text: str, speaker: Speaker) -> tuple[np.ndarray, float]:
            config = SynthesisConfig(
                length_scale=speaker.pitch / speaker.tempo,
                noise_scale=speaker.noise,
                noise_w_scale=speaker.rhythm,
            )
            if speaker.accent:
                pieces = [accents.mandarin(p, speaker.accent, rng) for p in voice.phonemize(text)]
                chunks: list = [
                    voice.phoneme_ids_to_audio(voice.phonemes_to_ids(p), config) for p in pieces
                ]
            else:
                chunks = [chunk.audio_float_array for chunk in voice.synthesize(text, config)]
            samples = np.concatenate([np.zeros(0, np.float32), *chunks])
            return samples, voice.config.sample_rate * speaker.pitch

        return speak


class Espeak:
    """The espeak-ng program: robotic, tiny and everywhere."""

    _WORDS_PER_MINUTE = 165

    def __init__(self, voice: str) -> None:
        """Looks the program up.

        Raises:
            AssetError: it is not installed.
        """
        program = shutil.which("espeak-ng")
        if program is None:
            raise AssetError(f"no espeak-ng program on the PATH; {_HOW_TO}")
        self._command = [program, "-v", voice, "--stdin", "--stdout"]
        version = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False
        )
        self.fingerprint = f"{version.stdout.split('Data')[0].strip()} {voice}"

    def session(self, seed: int) -> Callable[[str, Speaker], tuple[np.ndarray, float]]:
        del seed  # it speaks the same way every time

        def speak(text: str, speaker: Speaker) -> tuple[np.ndarray, float]:
            speed = round(self._WORDS_PER_MINUTE * speaker.tempo / speaker.pitch)
            command = [*self._command, "-s", str(speed)]
            done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
            if done.returncode:
                raise AssetError(f"{' '.join(command)} failed: {done.stderr.decode().strip()}")
            samples, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
            return samples, rate_hz * speaker.pitch

        return speak


class Flite:
    """The flite program: small voices made of real speakers (rms, slt, awb of CMU ARCTIC)."""

    def __init__(self, voice: str) -> None:
        """Looks program and voice up.

        Raises:
            AssetError: one of them is not there.
        """
        program = shutil.which("flite")
        if program is None:
            raise AssetError("no flite program on the PATH; install it (apt-get install flite)")
        listed = subprocess.run(
            [program, "-lv"], capture_output=True, text=True, check=False
        ).stdout
        if voice not in listed.split(":")[-1].split():
            raise AssetError(f"flite has no voice {voice!r}; it says: {listed.strip()}")
        self._command = [program, "-voice", voice]
        version = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False
        )
        self.fingerprint = f"flite {' '.join(version.stdout.split()[:4])} {voice}"

    def session(self, seed: int) -> Callable[[str, Speaker], tuple[np.ndarray, float]]:
        del seed  # it speaks the same way every time

        def speak(text: str, speaker: Speaker) -> tuple[np.ndarray, float]:
            stretch = f"duration_stretch={speaker.pitch / speaker.tempo:.3f}"
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "said.wav"
                command = [*self._command, "--setf", stretch, "-t", text, "-o", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode or not path.is_file():
                    raise AssetError(f"{' '.join(command)} failed: {done.stderr.strip()}")
                samples, rate_hz = soundfile.read(path, dtype="float32")
            return samples, rate_hz * speaker.pitch

        return speak


def render(
    lines: Sequence[Line],
    engine: Engine,
    folder: str | pathlib.Path,
    *,
    num_workers: int | None = None,
    progress: bool = False,
) -> list[pathlib.Path]:
    """Speaks every line into `<folder>/<utterance_id>.flac`, 16 kHz mono; done blocks are kept.

    Args:
        lines: what to speak; the ids must be fit for file names.
        engine: from `find_engine`.
        folder: must not be shared with other lines or another engine.
        num_workers: threads; None means one a core.
        progress: show a progress bar on standard error.

    Returns:
        The files, in the order of `lines`.

    Raises:
        DataError: a text with nothing to speak.
        CacheError: disk full or folder not writable; what was spoken is kept.
    """
    folder = pathlib.Path(folder)
    paths = {line.utterance_id: folder / f"{line.utterance_id}.flac" for line in lines}
    blocks = [lines[start : start + BLOCK] for start in range(0, len(lines), BLOCK)]
    todo = [b for b in blocks if not all(paths[line.utterance_id].is_file() for line in b)]
    stop = threading.Event()
    with (
        tqdm.tqdm(
            total=sum(map(len, todo)), unit="utt", desc="speech", disable=not progress
        ) as bar,
        futures.ThreadPoolExecutor(num_workers or os.cpu_count()) as pool,
    ):
        running = [pool.submit(_render_block, b, engine, paths, bar, stop) for b in todo]
        try:
            for block in futures.as_completed(running):
                block.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return list(paths.values())


def _render_block(
    block: Sequence[Line],
    engine: Engine,
    paths: Mapping[str, pathlib.Path],
    bar: tqdm.tqdm,
    stop: threading.Event,
) -> None:
    for line, waveform_S in waveforms(block, engine):
        with whole_file(paths[line.utterance_id]) as part:
            soundfile.write(part, waveform_S, SAMPLE_RATE_HZ, format="FLAC")
        bar.update()
        if stop.is_set():
            return


def waveforms(block: Sequence[AnyLine], engine: Engine) -> Iterator[tuple[AnyLine, np.ndarray]]:
    """Speaks a block line by line: 16 kHz, at the speaker's loudness; seeded by the block's content.

    Raises:
        DataError: a text with nothing to speak.
    """
    content = f"{engine.fingerprint} {block}".encode()
    speak = engine.session(int.from_bytes(hashlib.sha256(content).digest()[:4]) >> 1)
    for line in block:
        samples, rate_hz = speak(line.text, line.speaker)
        if not samples.any():
            raise DataError(f"{line.utterance_id}: nothing to speak in {line.text!r}")
        yield line, _finish(samples, rate_hz, line.speaker.gain_db)


def _finish(samples: np.ndarray, rate_hz: float, gain_db: float) -> np.ndarray:
    """16 kHz, at the speaker's loudness, with a little silence on both sides."""
    waveform_S = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    waveform_S = waveform_S * (10 ** (gain_db / 20) / np.abs(waveform_S).max())
    return np.pad(waveform_S, round(_EDGE_S * SAMPLE_RATE_HZ))


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path to write to, which becomes `path` after the block: whole, or not at all.

    Raises:
        CacheError: disk full or folder not writable; what was spoken before is kept.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise CacheError(
            f"cannot write {path}: {error}. What was spoken before is kept: free some space or name "
            "another folder (a dataset's cache_dir), then run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
