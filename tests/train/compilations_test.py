"""How many programs a whole run compiles: one a bucket for each of its loops, none in later epochs."""

import collections
import json

from tests.train import world
from tiny_align_jax.benchmark_startup import Compilations
from tiny_align_jax.train import loop, run

BUCKETS = 2


def test_a_run_compiles_a_program_a_bucket_and_none_in_its_second_epoch(tmp_path, monkeypatch):
    # Three buckets of these lengths are two after rounding.
    config, cache_dir = world.make(
        tmp_path, train__num_buckets=3, train__num_steps=15, train__validate_every=5
    )
    made: dict[int, collections.Counter] = {}
    real = loop._Dispatcher.__call__

    with Compilations() as counted:

        def spy(self, state, frozen, group, batches):
            made[group.first_step] = collections.Counter(counted.names)
            return real(self, state, frozen, group, batches)

        monkeypatch.setattr(loop._Dispatcher, "__call__", spy)
        result = run.train(config, tmp_path / "run", cache_dir, progress=False)
    epoch = (
        -(-result["num_utterances"] // 4) + BUCKETS - 1
    )  # steps of four, a part-filled one a bucket
    assert result["finished"] and 2 * epoch < 15
    card = json.loads((tmp_path / "run" / "projector.json").read_text())
    for part in ("projector", "objective"):  # a plug-in that was not used may be gone elsewhere
        assert set(card[part]) == {"name", config[part]["name"]} < set(config[part])
    # Training steps, and the reading of validation speakers, whose utterances have buckets of their own.
    assert counted.names["jit(steps)"] == BUCKETS
    assert 1 <= counted.names["jit(read)"] <= BUCKETS
    setting_up, first_epoch = made[0], made[epoch + 1] - made[0]  # step 5 was validated in it
    assert set(first_epoch) == {"jit(steps)", "jit(read)"}
    assert not counted.names - made[epoch + 1]
    assert setting_up.total() < 45, setting_up  # extraction, the table, first parameters
