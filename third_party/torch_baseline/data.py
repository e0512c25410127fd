"""From a resolved config to tensors: the same corpus, split, cached frames, vocabulary and table as ours.

Reading is shared with the JAX package on purpose: a comparison over other utterances or another
tokenisation would compare those. Everything after it is PyTorch.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from third_party.torch_baseline.objectives import Batch
from tiny_align_jax import registry
from tiny_align_jax.data import augment, batching, prompts, splits, tokenizer, vocabulary
from tiny_align_jax.train import corpus, loop, optimizer, setup, through_llm
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
        train: training examples. validation: of other speakers, None if the config has none.
        references: text of each validation utterance, by id.
        rows: text <-> rows of the table.
        table_VD: those rows, float32.
        words: the LLM's tokenizer. llm_folder: its weights. prompt: around the audio.
        card: contents of projector.json.
    """

    train: batching.Examples
    validation: batching.Examples | None
    references: Mapping[str, str]
    rows: vocabulary.Vocabulary
    table_VD: np.ndarray
    words: tokenizer.Tokenizer
    llm_folder: Any
    prompt: prompts.Prompt
    card: dict[str, Any]

    @property
    def out_rms(self) -> float:
        """Root mean square of the table."""
        return self.card["llm"]["out_rms"]


def load(config: Mapping[str, Any], cache_dir: str, progress: bool = True) -> Data:
    """Reads everything; features that the cache lacks are extracted by the JAX package.

    Args:
        config: resolved sections, as plain mappings.
        cache_dir: folder of weights and features.
        progress: show progress bars.

    Raises:
        TinyAlignError: of any stage, naming what is wrong.
    """
    refuse_unknown(config)
    objective, objective_config = registry.from_section("objectives", config["objective"])
    projector, projector_config = registry.from_section("projectors", config["projector"])
    split = corpus.read_split(config)
    splits.refuse_leaks(split, config["split"]["shared_speakers"])
    folder, choice = setup.resolve_llm(config, cache_dir, split)
    words = tokenizer.load(folder.path)
    kind = config["vocabulary"]["kind"]
    rows = vocabulary.build(
        kind,
        corpus.vocabulary_texts(config, split),
        words.token_strings(),
        words.eos_id,
        through_llm.vocabulary_tokenizer(objective, kind, words),
        config["vocabulary"]["min_count"],
    )
    table_VD = np.asarray(loading.embedding_rows(folder, rows.row_ids), np.float32)
    wanted = [*split.train, *split.validation]
    cache, report, encoder_card = corpus.features(config, cache_dir, wanted, progress)

    def can_emit(num_frames: int, target: np.ndarray) -> bool:
        repeats = int(np.sum(target[1:] == target[:-1]))
        needed = objective.min_audio_tokens(objective_config, len(target), repeats)
        return projector.num_audio_tokens(projector_config, num_frames) >= needed

    train, _ = corpus.examples("training", split.train, cache, report, rows, can_emit)
    validation = None
    if split.validation:
        validation, _ = corpus.examples(
            "validation",
            corpus.drawn(split.validation, config["train"].get("validate_limit", 0)),
            cache,
            report,
            rows,
            can_emit,
            targets=False,
        )
    out_rms = float(np.sqrt(np.mean(np.square(table_VD))))
    llm = setup.llm_card(config, folder, choice, table_VD.shape[1], out_rms)
    card = {
        "projector": registry.without_unread(config["projector"]),
        "objective": registry.without_unread(config["objective"]),
        "encoder": encoder_card,
        "llm": llm,
        "vocabulary": rows.to_json(),
    }
    prompt = prompts.build(registry.make_config(prompts, config["prompt"]), words)
    references = {u.utterance_id: u.text for u in split.validation}
    return Data(
        train, validation, references, rows, table_VD, words, folder, prompt, card
    )  # fmt: skip


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """Refuses what the baseline would leave out without a word.

    Raises:
        ConfigError: all such switches.
    """
    train, projector = config["train"], config["projector"].get("bridgeformer", {})
    wanted = {
        "a projector other than bridgeformer": config["projector"]["name"] != "bridgeformer",
        "an objective other than embedlink, embedlink_ctc, next_token": (
            config["objective"]["name"] not in ("embedlink", "embedlink_ctc", "next_token")
        ),
        "projector.bridgeformer.mix_layers": projector.get("mix_layers", 1) > 1,
        "llm.quantize": setup.held_llm(config) != type(setup.held_llm(config))(),
        "mixture.share": bool(config.get("mixture", {}).get("share")),
        "features.variants": bool(config["features"].get("variants")),
        "train.init_from": bool(train.get("init_from")),
        "train.average_decay": bool(train.get("average_decay")),
        "train.fixed": bool(train.get("fixed")),
        "train.patience": bool(train.get("patience")),
        "train.max_train_s": bool(train.get("max_train_s")),
    }
    if lacking := [name for name, is_wanted in wanted.items() if is_wanted]:
        raise ConfigError(f"the PyTorch baseline does not have: {', '.join(lacking)}")


def sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys of the sections that the baseline reads, checked and filled in by the package's own classes."""
    _, projector = registry.from_section("projectors", config["projector"])
    _, objective = registry.from_section("objectives", config["objective"])
    parts = {"projector": projector, "objective": objective}
    for name, module in (("train", loop), ("optimizer", optimizer), ("augment", augment)):
        parts[name] = registry.make_config(module, config[name])
    return {name: dict(vars(part)) for name, part in parts.items()}


class Corpus:
    """Training batches in the order in which the JAX package draws them.

    Frames lie on the device, as a good loader keeps what fits there: a step then needs row numbers only.
    """

    def __init__(
        self, examples: batching.Examples, train: Mapping[str, Any], seed: int, device: str
    ):
        """Args: what to draw from; keys of the loop's Config; seed of the order; where frames lie."""
        self._examples, self._train, self._device = examples, train, device
        self._buckets = batching.bucket_lengths(examples.num_frames_N, train["num_buckets"])
        self._seed = seed
        everything = np.arange(len(examples))
        corpus = batching.gather(
            examples, everything, np.ones(len(everything), np.float32), self._buckets[-1]
        )
        self._frames_N, self._targets_NL, self._counts_N = (
            torch.from_numpy(np.asarray(x)).long()
            for x in (corpus.num_frames_B, corpus.target_ids_BL, corpus.num_targets_B)
        )
        self._features_NTE = torch.from_numpy(corpus.features_BTE).to(device)
        self._on_device = [x.to(device) for x in (self._frames_N, self._targets_NL, self._counts_N)]

    def batches(self) -> Iterator[Batch]:
        """For ever; padded to few lengths."""
        groups = batching.schedule(
            self._examples,
            self._train["batch_size"],
            self._buckets,
            self._train["steps_per_dispatch"],
            self._seed,
        )
        for group in groups:
            # Once a group: a copy a step from pageable memory would wait for the device.
            index_KB = torch.from_numpy(group.index_KB).long()
            on_device_KB = index_KB.to(self._device)
            weight_KB = torch.from_numpy(group.weight_KB).to(self._device)
            for host_B, index_B, weight_B in zip(index_KB, on_device_KB, weight_KB, strict=True):
                frames_N, targets_NL, counts_N = self._on_device
                yield Batch(
                    features_BTE=self._features_NTE[index_B, : group.max_frames],
                    num_frames_B=frames_N[index_B],
                    targets_BL=targets_NL[index_B],
                    num_targets_B=counts_N[index_B],
                    weight_B=weight_B,
                    host_num_frames_B=self._frames_N[host_B],
                    host_num_targets_B=self._counts_N[host_B],
                )
