"""Plans against the real thing: shapes of what the loaders load, no weights read, the gates."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from configs import common
from tests import tiny_world
from tests.train import world
from tiny_align_jax.memory import plan, stages
from tiny_align_jax.memory.budget import Config, Part, Stage
from tiny_align_jax.memory.kinds import STAGES, with_work
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.train import corpus, setup
from tiny_align_jax.types import BudgetError, ConfigError
from tiny_align_jax.weights import assets, loading

CPU = Config(platform="cpu")


@pytest.fixture(scope="module")
def config_and_cache(tmp_path_factory):
    return world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(config_and_cache):
    """The plan of a run over the tiny corpus, its numbers read."""
    return plan.read_corpus(plan.make(*config_and_cache, CPU), config_and_cache[1])


def _no_weights(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights are read")

    for name in ("load_encoder", "load_llm", "embedding_rows"):
        monkeypatch.setattr(loading, name, refuse)


def _part(stage, name):
    return next(part for part in stage.parts if part.name == name)


def test_frozen_parts_are_as_large_as_what_is_loaded(made, config_and_cache):
    config, cache_dir = config_and_cache
    for kind, shapes, load in (
        ("encoder", made.shapes.encoder_params, loading.load_encoder),
        ("llm", made.shapes.llm_params, loading.load_llm),
    ):
        params = load(assets.resolve(config[kind]["asset"], cache_dir)).params
        same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, shapes, params)
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_parts_are_as_large_as_what_is_loaded(config_and_cache, weights):
    config, cache_dir = config_and_cache
    held = {"weights": weights, "group_size": 16}
    config = {
        **config,
        "encoder": {**config["encoder"], "quantize": held},
        "llm": {**config["llm"], "quantize": held},
    }
    shapes = plan.make(config, cache_dir, CPU).shapes
    for kind, found, load in (
        ("encoder", shapes.encoder_params, loading.load_encoder),
        ("llm", shapes.llm_params, loading.load_llm),
    ):
        folder = assets.resolve(config[kind]["asset"], cache_dir)
        params = load(folder, quantize=quantize.Config(**held)).params
        assert stages.tree_bytes(found) == stages.tree_bytes(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} >= {np.dtype("float16")}


def test_gguf_blocks_without_a_file_are_refused(tmp_path):
    section = {"asset": "SmolLM2-135M", "dtype": "float32", "quantize": {"weights": "gguf"}}
    with pytest.raises(ConfigError, match="gguf"):
        plan.find_model("llms", section, str(tmp_path)).params("llms")


def test_a_program_reads_quantised_matrices(made):
    llm = dataclasses.replace(made.shapes.llm, held=quantize.Config("int8", group_size=16))
    small = dataclasses.replace(made.shapes, llm=llm)
    assert stages.tree_bytes(small.llm_params) < stages.tree_bytes(made.shapes.llm_params)
    state, floats = small.answers("float32"), made.shapes.answers("float32")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), floats
    )


def test_training_counts_what_a_state_holds(made):
    assert made.shapes.work.num_utterances == 16 and made.shapes.work.validates
    shapes = with_work(made.shapes, validates=False)  # whose program costs as much to compile
    stage = STAGES["training"].build(shapes, CPU)
    projector = _part(stage, "projector and objective").device_bytes
    assert projector == 4 * sum(np.prod(x.shape) for x in jax.tree.leaves(made.shapes.params))
    assert 2 * projector <= _part(stage, "optimizer").device_bytes < 2 * projector + 1000
    assert _part(stage, "training step: temporaries").device_bytes > 0
    assert not [part for part in stage.parts if part.name.startswith("LLM")]
    assert stages.tree_bytes(made.shapes.table) == _part(stage, "table rows").device_bytes
    dim = made.shapes.table.table_VD.shape[1]
    constants = 4 * (dim + 1)  # of embedlink: a mean row and a variance
    assert _part(stage, "the objective's constants").device_bytes == constants


def test_ctc_keeps_the_rows_at_unit_length_while_it_trains(made):
    ctc = {"name": "embedlink_ctc", "embedlink_ctc": {}}
    shapes = dataclasses.replace(made.shapes, config={**made.shapes.config, "objective": ctc})
    rows, dim = shapes.table.table_VD.shape
    assert stages.tree_bytes(shapes.training_frozen.constants) == 4 * (rows + 1) * dim


def test_generation_holds_a_cache_for_every_token_of_every_answer(made):
    stage = STAGES["generation"].build(with_work(made.shapes, num_answers=4), CPU)
    llm, work = made.shapes.llm.config, made.shapes.work
    tokens = work.prefix_tokens + work.tail_tokens + work.new_tokens
    cache = 4 * 2 * 4 * llm.num_layers * llm.num_kv_heads * llm.head_dim * tokens
    caches = [p for p in stage.parts if p.name == "KV cache"]
    assert {p.moment for p in caches} == {"read the prompt", "answer"}
    found = next(p.device_bytes for p in caches if p.moment == "answer")
    assert cache <= found < 1.2 * cache  # masks, positions and ids beside it


def test_a_published_name_needs_no_weights(monkeypatch, tmp_path):
    _no_weights(monkeypatch)
    config = json.loads(common.base().to_json_best_effort())
    config["llm"] = {"asset": "meta-llama/Llama-3.2-3B-Instruct", "dtype": "bfloat16"}
    config["encoder"]["asset"] = "wavlm-base-plus"
    made = plan.make(config, str(tmp_path), Config(platform="gpu"))
    assert stages.tree_bytes(made.shapes.llm_params) == 2 * 3_212_749_824
    assert made.shapes.feature_dim == 768


def test_unknown_models_and_stages_name_what_there_is(made, tmp_path):
    with pytest.raises(ConfigError, match=r"nonsense.*Llama-3\.2-1B"):
        plan.find_model("llms", {"asset": "nonsense", "dtype": "float32"}, str(tmp_path))
    with pytest.raises(ConfigError, match=r"nonsense.*training"):
        made.stage("nonsense")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_world.make(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def cheap(monkeypatch):
    """Stages of 100 bytes a row of a batch, in place of those that compile."""
    _no_weights(monkeypatch)

    def build(title, shapes, device):
        rows = shapes.train.batch_size if title == "training" else shapes.work.num_recordings
        corpus = 10**6 * (shapes.train.resident != "never")
        return Stage(title, f"batch {rows}", (Part("rows", 100 * rows), Part("corpus", corpus)))

    for name in ("training", "personalisation", "reading"):
        kind = STAGES[name]
        fake = dataclasses.replace(kind, build=functools.partial(build, kind.title))
        monkeypatch.setitem(STAGES, name, fake)


@pytest.mark.parametrize(
    ("budget_bytes", "advice"),
    [(400, "resident='never'"), (350, "batch_size=3"), (50, "not fit with any")],
)
def test_the_gate_refuses_before_weights_and_names_what_fits(
    config_and_cache, cheap, budget_bytes, advice
):
    config, cache_dir = config_and_cache
    train = {**config["train"], "resident": "never" if "batch" in advice else "auto"}
    device = {"platform": "cpu", "budget_bytes": budget_bytes}
    with pytest.raises(BudgetError, match=rf"training \(batch 4\)(.|\n)*{advice}"):
        plan.require_fits({**config, "train": train, "device": device}, cache_dir, ["training"])


def test_the_gate_lets_pass_what_fits(config_and_cache, cheap):
    config, cache_dir = config_and_cache
    for device in ({"platform": "cpu", "budget_bytes": 2 * 10**6}, {}):
        plan.require_fits({**config, "device": device}, cache_dir, ["training"])


def test_a_workdir_is_refused_on_a_smaller_device(trained, cheap):
    device = {"name": "nutshell", "platform": "cpu", "budget_bytes": 1000}
    arguments = (trained.workdir, str(trained.cache_dir), ["reading"])
    with pytest.raises(BudgetError, match=r"nutshell(.|\n)*reading(.|\n)*not fit with any"):
        plan.require_workdir_fits(*arguments, device)
    plan.require_workdir_fits(*arguments, {})  # no device, no limit
    arguments = (trained.workdir, str(trained.cache_dir), ["personalisation"])
    with pytest.raises(BudgetError, match=r"nutshell(.|\n)*personalisation"):
        plan.require_workdir_fits(*arguments, device, {"fit": {"batch_size": 4}})


def test_planning_for_a_gpu_without_one_compiles_in_float32(config_and_cache):
    config, cache_dir = config_and_cache
    config = {**config, "train": {**config["train"], "compute_dtype": "bfloat16"}}
    there = plan.make(config, cache_dir, Config(platform="gpu"))
    assert there.shapes.train.compute_dtype == "float32"
    assert stages.Compiler(there.device).dtype("bfloat16") == "float32"
    assert plan.make(config, cache_dir, CPU).shapes.train.compute_dtype == "bfloat16"
    assert dataclasses.replace(there, device=CPU).assumptions()


def test_a_smaller_llm_is_planned_as_it_will_be(config_and_cache):
    config, cache_dir = config_and_cache
    shrunk = {"vocabulary": "train", "drop_layers": 1}
    config = {**config, "llm": {**config["llm"], "shrink": shrunk}}
    assumed = plan.make(config, cache_dir, CPU)
    read = plan.read_corpus(assumed, cache_dir)
    folder, choice = setup.resolve_llm(config, cache_dir, corpus.read_split(config))
    assert stages.tree_bytes(read.shapes.llm_params) == stages.tree_bytes(
        loading.held_shapes(folder, "llms", read.shapes.llm.dtype)
    )
    assert read.shapes.llm.config == loading.llm_config(folder)[1]
    assert read.shapes.scored_llm.config.num_layers == read.shapes.llm.config.num_layers + 1
    again = plan.make(config, cache_dir, CPU, stays=choice)
    assert again.shapes.llm == read.shapes.llm and again.shapes.scored_llm is None
    config["llm"]["shrink"] = {"drop_layers": 99}
    with pytest.raises(ConfigError, match=r"drop_layers=99; the LLM has \d+"):
        plan.make(config, cache_dir, CPU)


def test_a_gpu_is_sent_matrices_one_by_one_but_those_that_are_joined(config_and_cache):
    config, cache_dir = config_and_cache
    read, size = {}, {}
    for weights in ("float", "int8"):
        llm = {**config["llm"], "quantize": {"weights": weights}}
        params = plan.make({**config, "llm": llm}, cache_dir, CPU).shapes.llm_params
        _, read[weights] = stages._answering_weights(params, Config(platform="gpu"))
        size[weights] = stages.tree_bytes(params)
        assert len(stages._answering_weights(params, CPU)) == 1
    assert read["float"].device_bytes > read["int8"].device_bytes > 0
    assert 3 * read["int8"].host_bytes < read["float"].host_bytes
    assert all(read[weights].host_bytes < size[weights] for weights in size)


def test_what_a_gpu_takes_beside_what_was_asked_is_planned(config_and_cache):
    gpu, cpu = (
        plan.make(*config_and_cache, Config(platform=name)).stage("features")
        for name in ("gpu", "cpu")
    )
    more = {part.name for part in gpu.parts} - {part.name for part in cpu.parts}
    assert more == {
        "libraries, mapped",
        "transfers, pinned",
        "blocks larger than asked for",
        "compiled programs",
    }
    assert gpu.needed(Config(platform="gpu", shared=True)).num_bytes == (
        gpu.total.num_bytes - stages.LIBRARY_PAGES_BYTES
    )
