"""The base projectors in published/: whole, small, honest, and found by short names."""

import json
import pathlib
import re

import numpy as np
import pytest
from absl import flags

from configs import published as configs
from experiments import _main
from tiny_align_jax import aligner, publish, publish_card
from tiny_align_jax.adapt import replay
from tiny_align_jax.types import CheckpointError
from tiny_align_jax.weights import assets

BASES = _main.published_bases()
ABOUT = _main.PUBLISHED / "about.md"
FILES = {"README.md", "config.json", "projector.json", "projector.safetensors", "publish.json"}
# Weights of reading with help, and the texts it was tuned with.
READING = {"reading.json", "transcripts.txt", "sentences.txt"}
MAX_FOLDER_BYTES = 23_000_000
each = pytest.mark.parametrize("base", BASES, ids=[p.name for p in BASES])


def _json(path):
    return json.loads(path.read_text())


def _files():
    """What git keeps: an evaluation's page, pictures and predictions are ignored."""
    ignored = ("predictions", "report", "wer_by_group")
    files = [path for path in _main.PUBLISHED.rglob("*") if path.is_file()]
    return [path for path in files if not path.name.startswith(ignored)]


def test_they_are_small_together_and_hold_what_is_listed():
    files = _files()
    assert sum(path.stat().st_size for path in files) <= MAX_FOLDER_BYTES
    for base in BASES:
        names = {p.name for p in files if p.parent == base}
        assert {*FILES, replay.FILE} <= names
        strangers = names - FILES - {replay.FILE, *READING}
        assert strangers and all(re.fullmatch(r"metrics[\w.]*\.json", name) for name in strangers)


@each
def test_the_file_is_the_one_that_the_card_describes(base):
    weights = base / aligner.WEIGHTS_FILE
    about = _json(base / publish.ABOUT_FILE)
    assert weights.stat().st_size == about["num_bytes"] <= publish.MAX_BYTES
    assert publish.cache.file_sha256(weights) == about["sha256"]
    change = about["conversion"]["wer_published"] - about["conversion"]["wer_original"]
    assert abs(change) <= publish.Config().max_wer_change


@each
def test_every_number_of_the_card_is_that_of_the_metrics_beside_it(base):
    card = (base / publish_card.FILE).read_text()
    assert card == publish_card.text(base, ABOUT.read_text()), (
        f"write it anew: python -m experiments.publish --out={base.relative_to(_main.PUBLISHED.parent)}"
    )
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == list(publish_card.HEADINGS)
    scores = _json(min(base.glob(publish.METRICS)))["normalizers"][publish.NORMALIZER]["scores"]
    wer = scores["heard"]["all"]["wer"]
    assert f"{wer['value']:.3f} [{wer['low']:.3f}, {wer['high']:.3f}]" in card
    for part in ("encoder", "llm"):
        assert _json(base / aligner.CARD_FILE)[part]["fingerprint"] in card


@each
def test_no_path_of_a_machine_is_in_it(base):
    config = _json(base / aligner.CONFIG_FILE)
    assert publish.without_paths(config) == config
    for path in (*base.glob("*.json"), base / publish_card.FILE):
        assert not re.search(r"/(root|home|work|tmp|mnt|usr)/", path.read_text()), path


@each
def test_its_config_is_the_one_that_reproduces_it(base):
    argument = {"whisper-base": "base", "whisper-tiny.en": "tiny"}[base.name.partition("--")[0]]
    assert f"configs/published.py:{argument} " in _json(base / publish.ABOUT_FILE)["command"]
    wanted = json.loads(configs.get_config(argument).to_json_best_effort())
    found = _json(base / aligner.CONFIG_FILE)
    for section in ("split", "optimizer", "augment"):
        assert found[section] == wanted[section]
    for section, key in (("mixture", "share"), ("mixture", "limit"), ("train", "num_steps")):
        assert found[section][key] == wanted[section][key]
    for section in ("encoder", "projector", "objective"):
        for key, value in found[section].items():
            ours = wanted[section][key]  # keys that came after the run stand at their defaults
            assert value.items() <= ours.items() if isinstance(value, dict) else value == ours


@pytest.mark.weights
@each
def test_it_loads_hears_and_brings_its_replay(base, asset_cache):
    found = aligner.Aligner.load(base, asset_cache, need_llm=False)  # compares fingerprints
    kept = replay.load(base / replay.FILE, found.vocabulary)
    assert len(kept.frames) == 24 and kept.topics_KV.sum() > 1000
    one = min(range(len(kept.frames)), key=lambda i: len(kept.frames[i]))
    heard = found.hear(kept.frames[one][None], np.array([len(kept.frames[one])]))
    said = found.vocabulary.decode(kept.targets[one])
    assert set(heard.texts[0].split()) & set(said.split()), (heard.texts, said)


@pytest.mark.weights
@each
def test_another_encoder_is_refused(base, asset_cache, tmp_path):
    card = _json(base / aligner.CARD_FILE)
    others = {"whisper-base": "whisper-tiny.en", "whisper-tiny.en": "whisper-base"}
    card["encoder"]["name"] = others[card["encoder"]["name"]]
    for name in (aligner.CONFIG_FILE, aligner.WEIGHTS_FILE):
        (tmp_path / name).symlink_to(base / name)
    (tmp_path / aligner.CARD_FILE).write_text(json.dumps(card))
    found = assets.resolve(card["encoder"]["name"], asset_cache).fingerprint
    with pytest.raises(CheckpointError, match=f"trained with .*, found {found}"):
        aligner.Aligner.load(tmp_path, asset_cache, need_llm=False)


def test_short_names_stand_for_their_folders(tmp_path, monkeypatch):
    for name in ("whisper-a--llm", "whisper-b--llm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "projector.json").write_text("{}")
    monkeypatch.setattr(_main, "PUBLISHED", tmp_path)
    parse = _main._WorkdirParser().parse
    assert parse("whisper-a") == str(tmp_path / "whisper-a--llm")
    assert parse("workdirs/x") == "workdirs/x" and parse(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ValueError, match="whisper-a--llm, whisper-b--llm"):
        parse("whisper")
    assert _main._WorkdirsParser().parse("whisper-b,x") == [str(tmp_path / "whisper-b--llm"), "x"]
    assert _main.out_dir(None, parse("whisper-a")) == pathlib.Path("workdirs/whisper-a--llm")
    assert _main.out_dir(None, "w") == pathlib.Path("w") and _main.out_dir(
        "o", "w"
    ) == pathlib.Path("o")
    assert isinstance(_main._WorkdirParser(), flags.ArgumentParser)
