"""A trained projector becomes a folder for others: small, checked, free of this machine's paths."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import aligner, publish, publish_card, reading, reading_config
from tiny_align_jax.adapt import replay
from tiny_align_jax.types import CheckpointError, ConfigError

AUTHORS = "\n".join(f"## {heading}\nwords\n" for heading in publish_card.AUTHORS_HEADINGS)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The miniature with frozen parts under relative names, as if they were assets."""
    root = tmp_path_factory.mktemp("publish")
    made, here = tiny_world.make(root), os.getcwd()
    card = json.loads((made.workdir / "projector.json").read_text())
    for part in ("encoder", "llm"):
        card[part]["name"] = part
    (made.workdir / "projector.json").write_text(json.dumps(card))
    os.chdir(root)
    yield made
    os.chdir(here)


@pytest.fixture(scope="module")
def base(world):
    loaded = aligner.Aligner.load(world.workdir, world.cache_dir, need_llm=False)
    split = loaded.config["split"] | {"validation": "test"}
    return dataclasses.replace(loaded, config={**loaded.config, "split": split})


SENTENCES = ["the green door", "seven old dogs"]


@pytest.fixture(scope="module")
def published(world, base):
    sentences = world.audio.parent / "written.txt"
    sentences.write_text("\n".join(SENTENCES) + "\n")
    tuned = {"method": "beam", "ngram_weight": 0.3, "ngram_texts": str(sentences)}
    about = {"methods": {"beam": tuned}, "greedy_wer": 0.5, "num_utterances": 3}
    (world.workdir / "reading.json").write_text(json.dumps(about))
    folder = pathlib.Path("published")
    config = publish.Config(replay_count=4, command="train it", max_wer_change=1.0)
    return folder, publish.publish(base, world.workdir, folder, str(world.cache_dir), config)


def test_the_folder_is_half_as_large_and_reads_the_same(world, base, published):
    folder, about = published
    sizes = [(f / aligner.WEIGHTS_FILE).stat().st_size for f in (folder, world.workdir)]
    assert sizes[0] == about["num_bytes"] < 0.7 * sizes[1]
    found = aligner.Aligner.load(folder, world.cache_dir, need_llm=False)
    for a, b in zip(*(_leaves(x.params) for x in (base, found)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    assert about["conversion"]["weights_changed"] and about["conversion"]["num_utterances"] == 11
    assert len(replay.load(folder / replay.FILE, found.vocabulary).frames) == 1


def test_a_tuned_reading_travels_with_its_texts_and_needs_no_corpus(world, base, published):
    folder, _ = published
    how = reading_config.load_config(folder, "beam")
    found = aligner.Aligner.load(folder, world.cache_dir, need_llm=False)
    reader = reading.load(found, world.cache_dir, how)
    original = reading_config.load_config(world.workdir, "beam")
    there = reading.load(base, world.cache_dir, original)
    frames = [np.random.default_rng(0).normal(size=(40, 16)).astype(np.float16)]
    assert reader.read(frames) == there.read(frames)
    lines = [pathlib.Path(p).read_text().splitlines() for p in (how.transcripts, how.ngram_texts)]
    assert lines == [reading.transcripts(base), SENTENCES]


def test_no_path_of_this_machine_is_published(world, base, published):
    folder, _ = published
    assert str(world.audio) in json.dumps(base.config)
    for path in folder.glob("*.json"):
        assert str(world.audio.parent) not in path.read_text(), path
    config = {
        "root": "/a/b",
        "manifest": "/a/b/c.jsonl",
        "n": 3,
        "x": ["y", None],
        "v": "C:\\d\\e.txt",
    }
    plain = {"root": "", "manifest": "c.jsonl", "n": 3, "x": ["y", None], "v": "e.txt"}
    assert publish.without_paths(config) == plain


def test_weights_that_only_this_machine_has_are_refused(base):
    card = base.card | {"encoder": {"name": "/models/whisper"}}
    with pytest.raises(ConfigError, match="encoder '/models/whisper'"):
        publish.require_public(card)


def test_a_large_file_and_a_changed_reading_are_refused(world, base, published, monkeypatch):
    arguments = (base, world.workdir, "refused", str(world.cache_dir))
    monkeypatch.setattr(publish, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1,000 are published"):
        publish.publish(*arguments, publish.Config())
    monkeypatch.undo()
    result = {"wer_original": 0.3, "wer_published": 0.31}
    monkeypatch.setattr(publish, "compare", lambda *unused: dict(result))
    with pytest.raises(CheckpointError, match=r"moved by 0\.0100"):
        publish.publish(*arguments, publish.Config(replay_count=1))


def test_scores_are_copied_only_for_the_same_weights(world, base, published, tmp_path):
    folder, _ = published
    (world.workdir / "metrics.json").write_text("{}")
    config = publish.Config(replay_count=1, max_wer_change=1.0)
    cache_dir = str(world.cache_dir)
    publish.publish(base, world.workdir, "again", cache_dir, config)
    assert not list(pathlib.Path("again").glob(publish.METRICS))
    (folder / "metrics.json").write_text('{"reading": {"ngram_texts": "/a/b.txt"}}')
    publish.publish(base, folder, "copy", cache_dir, config)  # float16 already
    assert [p.name for p in pathlib.Path("copy").glob(publish.METRICS)] == ["metrics.json"]
    publish.clean_metrics(pathlib.Path("copy"))  # as the card does before it shows them
    copied = json.loads(pathlib.Path("copy/metrics.json").read_text())
    assert copied == {"reading": {"ngram_texts": "b.txt"}, "skipped": {}}
    (folder / "metrics.json").unlink()


def test_a_card_needs_scores_and_the_authors_part(published):
    folder, _ = published
    with pytest.raises(ConfigError, match=r"experiments\.evaluate --workdir=published"):
        publish_card.text(folder, AUTHORS)
    with pytest.raises(ConfigError, match=r"section.s. Limits"):
        publish_card.text(folder, AUTHORS.replace("## Limits", "## Else"))


def _leaves(params):
    return [np.asarray(x) for x in aligner.jax.tree.leaves(params)]
