"""The sections every experiment has, in data-flow order, filled with the defaults of the code.

A config file calls `base()` and changes what makes it itself. Defaults live in the dataclasses of the
library alone; here they are only shown, so that `--config.train.num_steps=100` works for every key.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from tiny_align_jax import registry, shrink
from tiny_align_jax.data import augment, prompts
from tiny_align_jax.memory import budget
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.train import loop, mixture, optimizer


def base() -> Any:  # a ConfigDict, whose attributes no type checker knows
    """All sections; see docs/architecture.md for the order of the data."""
    config = ConfigDict()
    config.seed = 0
    # All plug-ins of these families, so that a command line can name another one and set its keys.
    config.dataset = plugin("datasets", "speechocean762")
    config.split = ConfigDict(
        {
            "train": "train",  # the corpus's own split that train and validation come from
            "test": "test",  # never looked at before scoring
            "validation": "",  # the corpus's own split for validation, if it has one
            "validation_speakers": 12,  # otherwise so many speakers are taken out of train
            "shared_speakers": False,  # True: one user's own voice, speakers in every role
            "train_speakers": 0,  # keep only so many; 0 keeps all
            "train_fraction": 1.0,  # share of the training utterances to keep
            "seed": 0,
        }
    )
    # A second corpus to train on (docs/data.md); validation and test stay those of the first.
    config.mixture = from_dataclass(mixture.Config())
    config.mixture.dataset = plugin("datasets", "jsonl")
    config.encoder = ConfigDict(
        {
            "asset": "whisper-tiny.en",  # asset name, hub id or folder
            "window_s": 10.24,  # every utterance is padded to it; part of the cache key
            "layers": (-1,),  # hidden states kept as features; -1 is the last
            "dtype": "float32",
            # e.g. --config.encoder.quantize.weights=int8
            "quantize": from_dataclass(quantize.Config()),
        }
    )
    config.features = ConfigDict(
        {
            "batch_size": 8,  # utterances an encoder call
            "too_long": "skip",  # longer than the window: 'error', 'skip' or 'truncate'
            "bad_audio": "skip",  # unreadable or silent audio: 'error' or 'skip', always by name
            "variants": (),  # distortions such as 'speed:0.9': each adds a copy of every training utterance
        }
    )
    config.llm = ConfigDict(
        {
            "asset": "smollm2-135m-instruct",  # asset name, hub id or folder
            "dtype": "float32",  # what it computes in
            "quantize": from_dataclass(quantize.Config()),  # how its matrices are held
            "shrink": from_dataclass(shrink.Config()),  # fewer table rows, fewer layers
        }
    )
    config.vocabulary = ConfigDict(
        {
            "kind": "seen",  # rows of the LLM's table that are read: 'full', 'seen', 'pieces'
            "min_count": 2,  # 'pieces': rarer tokens are spelled with shorter ones
            "texts": "",  # file of further sentences whose tokens are rows, besides the transcripts'
        }
    )
    config.augment = from_dataclass(augment.Config())
    config.projector = plugin("projectors", "bridgeformer")
    config.objective = plugin("objectives", "embedlink_ctc")
    config.optimizer = from_dataclass(optimizer.Config())
    config.train = from_dataclass(loop.Config())
    config.prompt = from_dataclass(prompts.Config())
    # In sweeps; see `Aligner.snap`. '': evaluate's default, or 'none' for raw tokens.
    config.evaluation = ConfigDict({"snap": ""})
    config.device = from_dataclass(budget.Config())  # --device=NAME fills it
    return config


def plugin(family: str, name: str, **overrides: Any) -> Any:
    """Section `{'name': name, name: {all keys of the plug-in with their values}}`.

    The family's other plug-ins get sub-sections, too, so that their keys are flags; only the one that is
    named is read, and a run's config.json holds that one alone.
    """
    module = registry.resolve(family, name)
    section = {"name": name, name: dataclasses.asdict(registry.make_config(module, overrides))}
    for other in registry.names(family):
        if other != name:
            section[other] = dataclasses.asdict(registry.resolve(family, other).Config())
    return ConfigDict(section)


def from_dataclass(value: Any) -> ConfigDict:
    """Section with every field of a dataclass instance."""
    return ConfigDict(dataclasses.asdict(value))


def pick(name: str, arg: str, choices: dict[str, str]) -> str:
    """The choice that a config's argument names.

    Raises:
        ValueError: there is no such argument; lists those that there are.
    """
    if arg not in choices:
        raise ValueError(f"{name}: unknown argument {arg!r}; expected one of {sorted(choices)}")
    return choices[arg]
