"""A run over an LLM that the config makes smaller: its card alone brings the same LLM back."""

import json

import numpy as np

from tests.train import world
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.train import checkpoint, setup
from tiny_align_jax.weights import assets, loading, shrunk


def test_a_run_trains_against_the_rows_of_the_smaller_llm_and_loads_with_it(tmp_path):
    config, cache_dir = world.make(
        tmp_path,
        llm__shrink__vocabulary="train",
        llm__shrink__drop_layers=1,
        vocabulary__kind="seen",
    )
    prepared = setup.prepare(config, cache_dir, progress=False)
    choice = shrunk.Choice.from_json(json.loads(json.dumps(prepared.card["llm"]["shrunk"])))
    whole = assets.resolve(config["llm"]["asset"], cache_dir)
    frozen = prepared.run.frozen
    old_ids = np.array(choice.ids)[np.asarray(frozen.row_ids_V)]
    np.testing.assert_array_equal(frozen.table_VD, loading.embedding_rows(whole, old_ids))
    assert len(choice.ids) < whole.config["vocab_size"] and len(choice.layers) == 1

    workdir = tmp_path / "run"
    workdir.mkdir()
    checkpoint.export(workdir, prepared.state.trainable, prepared.card)
    (workdir / "config.json").write_text(json.dumps(config))
    aligner = Aligner.load(workdir, cache_dir, need_llm=True)
    model = aligner.require_llm().model.config
    assert (model.vocab_size, model.num_layers) == (len(choice.ids), 1)
    assert len(aligner.tokenizer) == len(choice.ids)
    rows = aligner.vocabulary.encode("the green dog slept")
    expected = aligner.embed_text("the green dog slept")
    np.testing.assert_array_equal(np.asarray(aligner.frozen.table_VD)[rows], expected)
