"""The cascade: Whisper's own decoder writes a text, the LLM is asked to repeat it.

What a user has without any alignment. English, transcription without time stamps, greedy or with Whisper's
fallback to higher temperatures, the standard 30 s window (Whisper's decoder was trained on nothing else),
weights from the canonical folder. Scored by the package's own code on exactly the utterances that
`experiments.evaluate` scores.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tqdm
import transformers
from absl import logging

from third_party.torch_baseline import llm as llm_lib
from tiny_align_jax import evaluate, registry, scoring
from tiny_align_jax.data import audio, prompts, tokenizer, vocabulary
from tiny_align_jax.types import SAMPLE_RATE_HZ, AudioError, ConfigError, DataError, Utterance
from tiny_align_jax.weights import assets

WINDOW_S = 30.0
# Radford et al. 2022, section 4.5, with the compression ratio as `transformers` measures it.
_FALLBACK = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
}
TRANSCRIPTS_FILE = "transcripts.jsonl"
_MULTILINGUAL_VOCABULARY = 51_865  # OpenAI's own rule: one token fewer is an English-only model


@dataclasses.dataclass(frozen=True)
class Config:
    """How the cascade runs.

    Attributes:
        device: a torch device, e.g. 'cpu' or 'cuda'.
        dtype: of Whisper and the LLM.
        batch_size: recordings a call.
        fallback: decode anew at rising temperatures what looks like a loop or a guess, as Whisper's own
            program does; greedy decoding alone now and then repeats a phrase up to the length limit.
        use_llm: ask the LLM, too.
        max_new_tokens: longest answer of the LLM.
        seed: of the sampling under `fallback`.
    """

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 16
    fallback: bool = False
    use_llm: bool = True
    max_new_tokens: int = 64
    seed: int = 0

    @property
    def method(self) -> str:
        """Names the decoding in files and tables."""
        return "fallback" if self.fallback else "greedy"


class Whisper:
    """Whisper with its decoder, from a canonical model folder."""

    def __init__(self, folder: Any, device: str, dtype: torch.dtype, fallback: bool = False):
        """Loads the model in `folder`; `fallback` as in `Config`.

        Raises:
            ConfigError: the folder holds an encoder that has no decoder.
        """
        if folder.config.get("model_type") != "whisper":
            raise ConfigError(
                f"{folder.name} is a {folder.config.get('model_type')!r} model; the cascade needs one "
                "with a decoder of its own: set encoder.asset to a Whisper"
            )
        model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(
            str(folder.path), dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        self._model = model.to(device).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder.path), local_files_only=True, trust_remote_code=False
        )
        self._extractor = transformers.WhisperFeatureExtractor(
            feature_size=model.config.num_mel_bins, chunk_length=int(WINDOW_S)
        )
        self._switches: dict[str, Any] = dict(_FALLBACK) if fallback else {"do_sample": False}
        self._switches |= self._complete_generation_config()

    def _complete_generation_config(self) -> dict[str, str]:
        """Fills in what folders converted from CTranslate2 do not carry; returns generate's arguments."""
        token_id = self._tokenizer.convert_tokens_to_ids
        config: Any = self._model.generation_config
        for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(self._model.config, name))
        config.max_length = self._model.config.max_target_positions
        config.no_timestamps_token_id = token_id("<|notimestamps|>")
        config.is_multilingual = self._model.config.vocab_size >= _MULTILINGUAL_VOCABULARY
        if not config.is_multilingual:
            return {}
        config.lang_to_id = {"<|en|>": token_id("<|en|>")}
        config.task_to_id = {"transcribe": token_id("<|transcribe|>")}
        return {"language": "en", "task": "transcribe"}

    @torch.no_grad()
    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Texts of recordings of at most 30 s, 16 kHz."""
        features = self._extractor(
            list(waveforms), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
        ).input_features
        inputs = features.to(self._model.device, self._model.dtype)
        mask = torch.ones(inputs.shape[0], inputs.shape[-1], device=inputs.device)
        ids_BM = self._model.generate(inputs, attention_mask=mask, num_beams=1, **self._switches)
        end = self._model.generation_config.eos_token_id  # all control tokens lie at or above it
        kept = [[i for i in row if i < end] for row in ids_BM.tolist()]
        return [text.strip() for text in self._tokenizer.batch_decode(kept)]


def run(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    cache_dir: str,
    settings: Config,
    selection: evaluate.Config,
    scoring_config: scoring.Config | None = None,
    *,
    progress: bool = False,
) -> evaluate.Evaluation:
    """Transcribes, asks the LLM, scores.

    Args:
        config: resolved sections of the experiment, as plain mappings.
        workdir: transcripts are appended here batch by batch; a later call goes on from them.
        cache_dir: folder of weights.
        settings: how to run.
        selection: which utterances, as in `experiments.evaluate`.
        scoring_config: metrics, normalisers and intervals.
        progress: show progress bars.

    Raises:
        ConfigError: transcripts in `workdir` that were made otherwise.
        DataError: no usable utterance.
    """
    wanted, partial = evaluate.choose(config, selection)
    folder = assets.resolve(config["encoder"]["asset"], cache_dir)
    seconds = {}
    start_s = time.monotonic()
    made_by = {
        "encoder": folder.fingerprint,
        "dtype": settings.dtype,
        "window_s": WINDOW_S,
        "method": settings.method,
    }
    log = _Transcripts(Path(workdir), made_by)
    skipped = _transcribe_all(config, wanted, folder, settings, log, progress)
    seconds["heard"] = round(time.monotonic() - start_s, 2)
    utterances = tuple(u for u in wanted if u.utterance_id not in skipped)
    if not utterances:
        raise DataError(
            f"no usable utterance in split {selection.split!r}: all {len(wanted)} skipped"
        )
    heard = [log.texts[u.utterance_id] for u in utterances]
    systems: dict[str, Sequence[str]] = {evaluate.HEARD: heard}
    stopped: tuple[bool, ...] = ()
    prompt_text = None
    if settings.use_llm:
        start_s = time.monotonic()
        answers, stopped, prompt_text = _answer(config, cache_dir, heard, settings, progress)
        systems[evaluate.ANSWER] = answers
        seconds["answer"] = round(time.monotonic() - start_s, 2)
    scoring_config = scoring_config or scoring.Config()
    pairs = [(evaluate.ANSWER, evaluate.HEARD)] if settings.use_llm else []
    metrics = {
        "split": selection.split,
        "partial": partial,
        "snap": selection.snap,
        "use_llm": settings.use_llm,
        "dataset": config["dataset"]["name"],
        "projector": "cascade",
        "objective": f"Whisper's own decoder, {settings.method}",
        "encoder": config["encoder"]["asset"],
        "llm": config["llm"]["asset"],
        "step": None,
        "prompt": prompt_text,
        "num_utterances": len(utterances),
        "num_speakers": len({u.speaker_id for u in utterances}),
        "skipped": skipped,
        "num_answers_cut": stopped.count(False),
        "intervals": dataclasses.asdict(scoring_config),
        "normalizers": scoring.score(scoring_config, utterances, systems, pairs),
        "reading": {"method": settings.method},
        "seconds": seconds,
        "versions": versions(settings),
    }
    return evaluate.Evaluation(utterances, systems, stopped, metrics)


def versions(settings: Config) -> dict[str, str]:
    """What the numbers depend on."""
    is_cuda = settings.device.startswith("cuda")
    device = torch.cuda.get_device_name() if is_cuda else settings.device
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device} {settings.dtype}",
    }


class _Transcripts:
    """Texts by utterance id, kept in a file of JSON lines that grows batch by batch."""

    def __init__(self, workdir: Path, made_by: Mapping[str, Any]):
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / TRANSCRIPTS_FILE
        self.texts: dict[str, str] = {}
        if not self._path.exists():
            self._append([{"made_by": made_by}])
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that a kill tore
                continue
            if "made_by" in row and row["made_by"] != made_by:
                raise ConfigError(
                    f"{self._path} was made by {row['made_by']}, this run is {dict(made_by)}; use "
                    "another --workdir, or delete the file"
                )
            if "id" in row:
                self.texts[row["id"]] = row["text"]

    def add(self, utterances: Sequence[Utterance], texts: Sequence[str]) -> None:
        """Remembers a batch."""
        ids = [u.utterance_id for u in utterances]
        self.texts |= zip(ids, texts, strict=True)
        self._append([{"id": i, "text": t} for i, t in zip(ids, texts, strict=True)])

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            # A newline first: the last line may be torn.
            file.writelines(f"\n{json.dumps(row, ensure_ascii=False)}" for row in rows)


def _transcribe_all(
    config: Mapping[str, Any],
    utterances: Sequence[Utterance],
    folder: Any,
    settings: Config,
    log: _Transcripts,
    progress: bool,
) -> dict[str, str]:
    """Fills `log`; returns the reason of every utterance that has no text, by id."""
    skipped: dict[str, str] = {}
    waveforms: dict[str, np.ndarray] = {}
    for utterance in utterances:
        if utterance.utterance_id in log.texts:
            continue
        try:
            waveforms[utterance.utterance_id] = _read(config, utterance)
        except AudioError as error:
            skipped[utterance.utterance_id] = str(error)
            logging.warning("skipped %s: %s", utterance.utterance_id, error)
    # Neighbours in length end their texts at about the same step.
    todo = sorted(
        (u for u in utterances if u.utterance_id in waveforms),
        key=lambda u: len(waveforms[u.utterance_id]),
    )
    if not todo:
        return skipped
    torch.manual_seed(settings.seed)
    dtype = getattr(torch, settings.dtype)
    whisper = Whisper(folder, settings.device, dtype, settings.fallback)
    with tqdm.tqdm(
        total=len(utterances),
        initial=len(utterances) - len(todo),
        desc="whisper",
        disable=not progress,
    ) as bar:
        for start in range(0, len(todo), settings.batch_size):
            batch = todo[start : start + settings.batch_size]
            log.add(batch, whisper.transcribe([waveforms[u.utterance_id] for u in batch]))
            bar.update(len(batch))
    return skipped


def _read(config: Mapping[str, Any], utterance: Utterance) -> np.ndarray:
    """Its audio, under the same limit of length as the features of a trained projector.

    Raises:
        AudioError: unreadable, or too long for the run's window.
    """
    limit_s = min(config["encoder"]["window_s"], WINDOW_S)
    waveform = audio.read_audio(utterance.audio_path, utterance.start_s, utterance.end_s)
    if len(waveform) <= round(limit_s * SAMPLE_RATE_HZ):
        return waveform
    if config["features"]["too_long"] == "truncate":
        return waveform[: round(limit_s * SAMPLE_RATE_HZ)]
    raise AudioError(
        f"{utterance.audio_path}: {len(waveform) / SAMPLE_RATE_HZ:.2f} s long, the window is {limit_s} s"
    )


def _answer(
    config: Mapping[str, Any],
    cache_dir: str,
    heard: Sequence[str],
    settings: Config,
    progress: bool,
) -> tuple[list[str], tuple[bool, ...], str]:
    """The LLM's answers to the texts under the run's own prompt; nothing heard is answered with nothing."""
    folder = assets.resolve(config["llm"]["asset"], cache_dir)
    words = tokenizer.load(folder.path)
    prompt = prompts.build(registry.make_config(prompts, config.get("prompt", {})), words)
    model = llm_lib.load(folder.path, settings.device, getattr(torch, settings.dtype))
    generator = llm_lib.Generator(
        model, prompt.stop_ids, prompt.prefix_ids.tolist(), max_new_tokens=settings.max_new_tokens
    )
    spoken = [vocabulary.spoken_form(text) for text in heard]
    asked = [i for i, text in enumerate(spoken) if text]
    ids = [[*words.encode(" " + spoken[i]), *prompt.suffix_ids.tolist()] for i in asked]
    embed = model.get_input_embeddings()
    with torch.no_grad():
        tails = [embed(torch.tensor(row, device=settings.device)) for row in ids]
    texts, stopped = [""] * len(heard), [True] * len(heard)
    with tqdm.tqdm(total=len(tails), desc="answer", disable=not progress) as bar:
        for i, made in zip(asked, generator(tails, bar.update), strict=True):
            texts[i], stopped[i] = words.decode(made.ids).strip(), made.stopped
    return texts, tuple(stopped), prompt.text
