"""The composition: cached frames -> projector -> reading -> embedding rows -> prompt -> LLM's answer.

Loaded from what a training run exports (`projector.json`, `projector.safetensors`, `config.json`). The
frozen parts are found by the names in the card and compared by fingerprint: a projector is worth
nothing with another encoder or LLM, and nothing else would show it.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import decode, joined, lora, placing, programs, registry
from tiny_align_jax.data import prompts, tokenizer, vocabulary
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.responder import Llm, Responder
from tiny_align_jax.types import (
    Array,
    CheckpointError,
    ConfigError,
    Frozen,
    PyTree,
    Reading,
    WeightsError,
)
from tiny_align_jax.weights import assets, loading, safetensors, shrunk

CONFIG_FILE = "config.json"
CARD_FILE = "projector.json"
WEIGHTS_FILE = "projector.safetensors"
LORA_FILE = "lora.safetensors"
SNAPS = ("nearest", "soft", "none", "retokenize")
_CARD_KEYS = ("projector", "objective", "encoder", "llm", "vocabulary")


@dataclasses.dataclass(frozen=True)
class Ear:
    """The trained part without its parameters: hashable, so jit can key on it."""

    projector: nn.Module
    objective: ModuleType
    objective_config: Any


@dataclasses.dataclass(frozen=True)
class Hearing:
    """What was heard in a batch.

    Attributes:
        texts: the reading of every row as text; '' where nothing was heard.
        reading: the objective's reading, on the host.
        audio_BAD: projector output, float32.
        audio_mask_BA: its valid tokens.
    """

    texts: tuple[str, ...]
    reading: Reading
    audio_BAD: np.ndarray
    audio_mask_BA: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # trees of arrays do neither well
class Aligner:
    """A trained projector between its frozen encoder and LLM. Made by `load`.

    Attributes:
        config: the run's resolved config sections.
        card: contents of projector.json.
        ear: projector and objective.
        params: {'projector': ..., 'objective': ...}, float32 on the device; with 'frames' where a user's
            state changes the encoder's frames (see `change_frames`).
        frozen: rows of the LLM's embedding table.
        vocabulary: text <-> rows.
        tokenizer: of the LLM.
        encoder_folder: where the encoder's weights are.
        llm_folder: where the LLM's weights are.
        llm: the LLM with its parameters, None if it was not asked for.
        user_encoder: encoder parameters -> a user's own, where a user's state changes them.
        user_texts: what the user has said before, in spoken form.
    """

    config: Mapping[str, Any]
    card: Mapping[str, Any]
    ear: Ear
    params: PyTree
    frozen: Frozen
    vocabulary: vocabulary.Vocabulary
    tokenizer: tokenizer.Tokenizer
    encoder_folder: Any
    llm_folder: Any
    llm: Llm | None = None
    user_encoder: Callable[[PyTree], PyTree] | None = None
    user_texts: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, workdir: str | os.PathLike, cache_dir: str | os.PathLike, *, need_llm: bool
    ) -> "Aligner":
        """The aligner of a trained workdir.

        Args:
            workdir: folder that `experiments.train` wrote.
            cache_dir: where weights are kept.
            need_llm: False reads table rows only and can hear but not answer.

        Raises:
            CheckpointError: files missing or damaged, or the encoder or LLM found under the card's
                names are not those the projector was trained with (both named).
            AssetError: weights that cannot be found.
        """
        folder = Path(workdir)
        config, card = read_workdir(folder)
        encoder_folder = assets.resolve(card["encoder"]["name"], cache_dir)
        whole = assets.resolve(card["llm"]["name"], cache_dir)
        choice = shrunk.Choice.from_json(card["llm"].get("shrunk", {}))
        llm_folder = shrunk.resolve(whole, choice, cache_dir)
        check_fingerprints(card, encoder_folder.fingerprint, llm_folder.fingerprint)
        words = tokenizer.load(llm_folder.path)
        rows = vocabulary.from_json(card["vocabulary"], words.token_strings(), words.eos_id, words)
        held = _held(card, "llm")
        frozen = Frozen(
            # No name for what was read: the host would hold it while the LLM is loaded.
            table_VD=placing.put(loading.embedding_rows(llm_folder, rows.row_ids, held)),
            row_ids_V=jax.device_put(np.asarray(rows.row_ids, np.int32)),
        )
        ear = make_ear(card)
        params = load_params(folder / WEIGHTS_FILE, ear, card, frozen)
        llm = _load_llm(llm_folder, config, held, folder / LORA_FILE) if need_llm else None
        return cls(config, card, ear, params, frozen, rows, words, encoder_folder, llm_folder, llm)

    def held(self, part: str) -> quantize.Config:
        """How the matrices of 'encoder' or 'llm' are held; the projector was trained with that."""
        return _held(self.card, part)

    def encoder_params(self, dtype: Any = jnp.float32) -> PyTree:
        """Parameters of the encoder, with what a user's state changes of them."""
        params = loading.load_encoder(self.encoder_folder, dtype, self.held("encoder")).params
        return self.user_encoder(params) if self.user_encoder else params

    def hear(self, features_BTE: Array, num_frames_B: Array) -> Hearing:
        """Reads encoder frames without the LLM; compiles once a shape.

        Args:
            features_BTE: frames of the encoder in the card, padded.
            num_frames_B: valid frames a row.

        Raises:
            ConfigError: frames of another width than the projector was trained on.
        """
        expected = feature_dim(self.card)
        if np.ndim(features_BTE) != 3 or np.shape(features_BTE)[-1] != expected:
            raise ConfigError(
                f"features of shape {np.shape(features_BTE)}; the projector reads [batch, frames, "
                f"{expected}] of encoder {self.card['encoder']['name']}"
            )
        outputs = hear_batch(self.ear, self.params, self.frozen, features_BTE, num_frames_B)
        audio_BAD, audio_mask_BA, reading = jax.device_get(outputs)
        texts = tuple(
            self.vocabulary.decode(rows[keep])
            for rows, keep in zip(reading.rows_BA, reading.keep_BA, strict=True)
        )
        return Hearing(texts, reading, audio_BAD, audio_mask_BA)

    def prepare_to_hear(self, features_BTE: Array, num_frames_B: Array) -> None:
        """Reads the program of `hear` for arrays of such shapes, if it was kept; to be called in a thread."""
        hear_batch.prepare(self.ear, self.params, self.frozen, features_BTE, num_frames_B)

    def snap(self, hearing: Hearing, row: int, mode: str) -> np.ndarray:
        """What the LLM gets in place of the audio, float32 [tokens, D]; no tokens if nothing was heard.

        Args:
            hearing: from `hear`.
            row: row of its batch.
            mode: 'nearest' (rows of the read tokens), 'soft' (probability-weighted rows at the read
                tokens), 'none' (every valid projector output as it is) or 'retokenize' (the read
                text tokenised as the LLM itself would).

        Raises:
            ConfigError: unknown mode.
        """
        check_snap(mode)
        keep_A = hearing.reading.keep_BA[row]
        if mode == "nearest":
            # Taken where they lie, and as many for every text: else the whole table comes to the host.
            rows_A = hearing.reading.rows_BA[row]
            return np.asarray(jnp.take(self.frozen.table_VD, rows_A, axis=0))[keep_A]
        if mode == "soft":
            return np.asarray(hearing.reading.soft_BAD[row][keep_A], np.float32)
        if mode == "none":
            return hearing.audio_BAD[row][hearing.audio_mask_BA[row]]
        return self.embed_text(hearing.texts[row])

    def embed_text(self, text: str) -> np.ndarray:
        """Input embeddings of spoken text as it stands in a prompt, float32 [tokens, D]."""
        spoken = vocabulary.spoken_form(text)
        ids = self.tokenizer.encode(" " + spoken) if spoken else []
        return self.require_llm().embed(ids)

    def responder(
        self, prompt: prompts.Config | None = None, settings: decode.Config | None = None
    ) -> Responder:
        """The LLM under one prompt (default: the run's own) and one way to generate.

        Raises:
            ConfigError: loaded without the LLM, or a prompt the LLM cannot take.
        """
        chosen = prompt or registry.make_config(prompts, self.config.get("prompt", {}))
        built = prompts.build(chosen, self.tokenizer)
        return Responder(self.require_llm(), self.tokenizer, built, settings or decode.Config())

    def require_llm(self) -> Llm:
        """The LLM.

        Raises:
            ConfigError: loaded without it.
        """
        if self.llm is None:
            raise ConfigError("this aligner was loaded without the LLM; load it with need_llm=True")
        return self.llm


programs.result_type(Reading)


@programs.kept(num_static=1)
def hear_batch(
    ear: Ear, params: PyTree, frozen: Frozen, features_BTE: Array, num_frames_B: Array
) -> tuple[Any, Any, Reading]:
    """Audio tokens of frames, their mask, and what the objective reads of them."""
    audio_BAD, audio_mask_BA = project(ear, params, features_BTE, num_frames_B)
    reading = ear.objective.read(
        ear.objective_config, params["objective"], audio_BAD, audio_mask_BA, frozen
    )
    return audio_BAD, audio_mask_BA, reading


def project(
    ear: Ear, params: PyTree, features_BTE: Array, num_frames_B: Array
) -> tuple[Array, Array]:
    """Projected audio and its mask, of frames as `Aligner.params` takes them; to be called under jit."""
    mask_BT = jnp.arange(features_BTE.shape[1])[None] < num_frames_B[:, None]
    features_BTE = change_frames(params.get("frames", {}), features_BTE)
    projected: Any = ear.projector.apply({"params": params["projector"]}, features_BTE, mask_BT)
    return projected


def change_frames(change: Mapping[str, Array], features_BTE: Array) -> Array:
    """Encoder frames as a user's projector takes them: `x (1 + scale) + shift` by channel, if any."""
    if "scale" in change:
        features_BTE = features_BTE * (1 + change["scale"])
    return features_BTE + change["shift"] if "shift" in change else features_BTE


def check_snap(mode: str) -> None:
    """Raises ConfigError unless `mode` is one of SNAPS."""
    if mode not in SNAPS:
        raise ConfigError(f"unknown snap mode {mode!r}; expected one of {', '.join(SNAPS)}")


def feature_dim(card: Mapping[str, Any]) -> int:
    """Width of the frames the projector reads: the layers kept, side by side."""
    return card["encoder"]["dim"] * len(card["encoder"]["layers"])


def make_ear(card: Mapping[str, Any]) -> Ear:
    """Projector and objective that a card describes.

    Raises:
        ConfigError: plug-ins or keys that this version does not have.
    """
    projector, projector_config = registry.from_section("projectors", card["projector"])
    objective, objective_config = registry.from_section("objectives", card["objective"])
    llm = card["llm"]
    module = projector.Projector(projector_config, llm["dim"], llm["out_rms"])
    return Ear(module, objective, objective_config)


def load_params(path: Path, ear: Ear, card: Mapping[str, Any], frozen: Frozen) -> PyTree:
    """Trained parameters, checked by name and shape against the card's projector and objective.

    Raises:
        CheckpointError: damaged file, or one that does not fit the card.
    """

    def init() -> PyTree:
        key = jax.random.key(0)
        features, mask = jnp.zeros((1, 8, feature_dim(card))), jnp.ones((1, 8), bool)
        return {
            "projector": ear.projector.init(key, features, mask)["params"],
            "objective": ear.objective.init(ear.objective_config, key, frozen),
        }

    try:
        saved = safetensors.load_tree(path, like=jax.eval_shape(init))
    except WeightsError as error:
        raise CheckpointError(
            f"{error}. {WEIGHTS_FILE} and {CARD_FILE} must come from the same export"
        ) from error
    return placing.put(jax.tree.map(lambda x: np.asarray(x, np.float32), saved))


def check_fingerprints(card: Mapping[str, Any], encoder: str, llm: str) -> None:
    """Refuses frozen parts other than those the projector was trained with.

    Raises:
        CheckpointError: names every part that differs, with both fingerprints.
    """
    problems = [
        f"{part} {card[part]['name']!r}: trained with {card[part]['fingerprint']}, found {found}"
        for part, found in (("encoder", encoder), ("llm", llm))
        if card[part]["fingerprint"] != found
    ]
    if problems:
        raise CheckpointError(
            "the projector was trained with other frozen weights: "
            + "; ".join(problems)
            + ". Use the original weights, or train a projector for these"
        )


def _held(card: Mapping[str, Any], part: str) -> quantize.Config:
    return registry.make_config(quantize, card[part].get("quantize", {}))


def _load_llm(folder: Any, config: Mapping[str, Any], held: quantize.Config, adapters: Path) -> Llm:
    dtype = jnp.dtype(config.get("llm", {}).get("dtype", "float32"))
    loaded = loading.load_llm(folder, dtype, held, joined.place_unjoined)
    model = decode.LanguageModel(loaded.module, loaded.config, dtype)
    params = loaded.params
    return Llm(model, _with_adapters(params, adapters) if adapters.is_file() else params)


def _with_adapters(params: PyTree, path: Path) -> PyTree:
    """The LLM with the adapters that its run trained beside the projector.

    Raises:
        CheckpointError: a damaged file, or adapters of another LLM.
    """
    try:
        like = jax.eval_shape(lambda: lora.init(jax.random.key(0), params, 1))
        adapters = safetensors.load_tree(path)
        if jax.tree.structure(adapters) != jax.tree.structure(like):
            raise WeightsError(f"{path} has adapters of an LLM with other layers")
        return lora.merge(params, adapters)
    except WeightsError as error:
        raise CheckpointError(f"{error}. It must come from the export beside it") from error


def read_workdir(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's config and card.

    Raises:
        CheckpointError: lists all files that are missing, unreadable or incomplete.
    """
    needed = (CONFIG_FILE, CARD_FILE, WEIGHTS_FILE)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is no trained workdir: {', '.join(missing)} missing; run "
            f"`python -m experiments.train --workdir={folder}` to its end first"
        )
    contents, problems = [], []
    for name in (CONFIG_FILE, CARD_FILE):
        try:
            contents.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except ValueError as error:
            problems.append(f"{name} is damaged ({error})")
    if not problems:
        lacking = [key for key in _CARD_KEYS if key not in contents[1]]
        problems = [f"{CARD_FILE} lacks {', '.join(lacking)}"] if lacking else []
    if problems:
        raise CheckpointError(f"{folder}: {'; '.join(problems)}; export the run again")
    return contents[0], contents[1]
