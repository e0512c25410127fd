"""A user's file: what goes in comes out; damage, strangers and wrong names are refused."""

import numpy as np
import pytest

from tiny_align_jax.adapt import state
from tiny_align_jax.types import AssetError, CheckpointError, ConfigError
from tiny_align_jax.weights import safetensors


def _state(user="anna"):
    delta = {"b:projector/layers/query/kernel": np.full((2, 3), 0.25), "frames:shift": np.ones(4)}
    return state.State(user, "f" * 64, delta, np.array([7, 9]), np.ones(5), {"texts": ["hello"]})


def test_a_state_comes_back(tmp_path):
    path = state.save(tmp_path, _state())
    found = state.find(tmp_path, "anna")
    assert path.name == "anna.safetensors" and found.about == {"texts": ["hello"]}
    assert sorted(found.delta) == sorted(_state().delta)
    np.testing.assert_array_equal(found.delta["frames:shift"], np.ones(4))
    np.testing.assert_array_equal(found.extra_row_ids, [7, 9])
    np.testing.assert_array_equal(found.row_bias, np.ones(5))


def test_a_user_without_changes_is_a_small_file(tmp_path):
    empty = state.State("ben", "0" * 64, {}, np.zeros(0, np.int32), None, {})
    found = state.load(state.save(tmp_path, empty))
    assert found.delta == {} and found.row_bias is None and len(found.extra_row_ids) == 0


def test_users_are_listed_exported_and_deleted(tmp_path):
    assert "no users" in state.table(tmp_path)
    state.save(tmp_path, _state())
    (tmp_path / "broken.safetensors").write_bytes(b"\x08")
    table = state.table(tmp_path)
    assert "anna" in table and "damaged" in table
    copy = state.export(tmp_path, "anna", tmp_path / "copy.bin")
    assert state.load(copy).user == "anna"
    state.delete(tmp_path, "anna")
    with pytest.raises(AssetError, match=r"no user 'anna'.*broken"):
        state.delete(tmp_path, "anna")


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "x" * 81])
def test_names_that_make_no_file_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="expected 1 to 80"):
        state.path_of(tmp_path, name)


def test_other_safetensors_files_are_no_users(tmp_path):
    safetensors.save_tree(tmp_path / "x.safetensors", {"a": np.ones(2)})
    with pytest.raises(CheckpointError, match="no user's state"):
        state.load(tmp_path / "x.safetensors")
