"""What a run says of itself, and what it goes on from."""

import json

import pytest

from configs import common
from tiny_align_jax import registry
from tiny_align_jax.train import run
from tiny_align_jax.types import CheckpointError


def _saved(folder, config):
    (folder / run.CONFIG_FILE).write_text(json.dumps(config))


def test_only_what_is_read_tells_two_runs_apart(tmp_path):
    full = json.loads(common.base().to_json_best_effort())
    for there in (full, registry.without_unread(full)):  # as older versions wrote it, and today's
        _saved(tmp_path, there)
        unread = full | {"projector": full["projector"] | {"mlp": {"stack": 7}}}
        run._require_same_config(tmp_path, unread)
        run._require_same_config(tmp_path, unread | {"device": {"name": "pi5_8gb"}})
        bridge = full["projector"]["bridgeformer"] | {"num_layers": 9}
        other = full | {"projector": full["projector"] | {"bridgeformer": bridge}}
        with pytest.raises(CheckpointError, match=r"(?s)another config.*num_layers.*--noresume"):
            run._require_same_config(tmp_path, other)
