"""Safetensors: agreement with the reference library, damage, rows, trees, atomic writes."""

import errno
import json
import os
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.weights import writers
from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights import _safetensors_file, safetensors

_RNG = np.random.default_rng(0)
_DTYPES = (
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
)


def _arrays() -> dict[str, np.ndarray]:
    arrays = {np.dtype(d).name: (10 * _RNG.standard_normal((3, 5))).astype(d) for d in _DTYPES}
    return arrays | {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(3.5, np.float32)}


def _assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array)


def test_reads_what_the_reference_library_wrote(tmp_path):
    arrays = _arrays()
    writers.write_safetensors(tmp_path / "model.safetensors", arrays)
    source = safetensors.SafetensorsSource(tmp_path)
    assert source.names() == tuple(sorted(arrays))
    _assert_equal({n: source.read(n) for n in source.names()}, arrays)
    assert all(source.shape(n) == a.shape and source.dtype(n) == a.dtype for n, a in arrays.items())


def test_the_reference_library_reads_what_we_wrote(tmp_path):
    arrays = _arrays()
    safetensors.save_tree(tmp_path / "x.safetensors", arrays, {"note": "é"})
    _assert_equal(load_file(tmp_path / "x.safetensors"), arrays)
    assert safetensors.read_metadata(tmp_path / "x.safetensors") == {"note": "é"}


def test_sharded_folder_reads_as_one(tmp_path):
    a, b = _RNG.standard_normal((4, 3)), _RNG.standard_normal(7)
    shards = {
        "model-00001-of-00002.safetensors": {"a": a},
        "model-00002-of-00002.safetensors": {"b": b},
    }
    writers.write_sharded(tmp_path, shards)
    source = safetensors.SafetensorsSource(tmp_path)
    _assert_equal({n: source.read(n) for n in source.names()}, {"a": a, "b": b})


def test_missing_shards_are_named(tmp_path):
    shards = {f"model-{i}.safetensors": {f"x{i}": np.ones(2)} for i in range(3)}
    writers.write_sharded(tmp_path, shards)
    (tmp_path / "model-0.safetensors").unlink()
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(AssetError, match=r"model-0\.safetensors, model-2\.safetensors"):
        safetensors.SafetensorsSource(tmp_path)


def test_index_that_disagrees_with_its_shards(tmp_path):
    writers.write_sharded(tmp_path, {"s.safetensors": {"a": np.ones(2)}})
    index = tmp_path / safetensors.INDEX_FILE
    index.write_text(json.dumps({"weight_map": {"a": "s.safetensors", "ghost": "s.safetensors"}}))
    with pytest.raises(WeightsError, match="ghost"):
        safetensors.SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../../secret"}}']
)
def test_broken_index_is_a_weights_error(tmp_path, text):
    (tmp_path / safetensors.INDEX_FILE).write_text(text)
    with pytest.raises(WeightsError, match="index"):
        safetensors.SafetensorsSource(tmp_path)


def test_every_truncation_is_noticed_on_opening(tmp_path):
    path = tmp_path / "model.safetensors"
    writers.write_safetensors(
        path, {"a": _RNG.standard_normal((4, 4)), "b": np.ones(3, np.float32)}
    )
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            safetensors.SafetensorsSource(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1, 2]",
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": 7}',
    ],
)
def test_corrupt_headers_are_weights_errors(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match="header we cannot read"):
        safetensors.SafetensorsSource(path)


def test_pickles_are_refused_with_the_reason(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(AssetError, match=r"pytorch_model\.bin.*pickled"):
        safetensors.SafetensorsSource(tmp_path)


def test_absent_folder_and_absent_weights(tmp_path):
    with pytest.raises(AssetError, match="does not exist"):
        safetensors.SafetensorsSource(tmp_path / "nowhere")
    with pytest.raises(AssetError, match="neither"):
        safetensors.SafetensorsSource(tmp_path)


def test_rows_touch_only_those_rows(tmp_path):
    path, num_rows = tmp_path / "model.safetensors", 1_000_000
    header = json.dumps(
        {"table": {"dtype": "F32", "shape": [num_rows, 64], "data_offsets": [0, num_rows * 256]}}
    ).encode()
    with open(path, "wb") as file:  # sparse: 256 MB that take no disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(8 + len(header) + 777_777 * 256)
        file.write(np.arange(64, dtype=np.float32).tobytes())
        file.truncate(8 + len(header) + num_rows * 256)
    source = safetensors.SafetensorsSource(path)
    tracemalloc.start()
    rows = source.rows("table", [5, 777_777])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(rows, [np.zeros(64), np.arange(64)])
    assert peak < 100_000


@pytest.mark.parametrize("ids", [[-1], [4], [0, 99]])
def test_rows_outside_the_matrix_are_named(tmp_path, ids):
    writers.write_safetensors(
        tmp_path / "model.safetensors", {"t": np.ones((4, 2)), "v": np.ones(4)}
    )
    source = safetensors.SafetensorsSource(tmp_path)
    with pytest.raises(WeightsError, match=str(ids[-1])):
        source.rows("t", ids)
    with pytest.raises(WeightsError, match="expected a matrix"):
        source.rows("v", [0])
    with pytest.raises(WeightsError, match="no tensor 'x'"):
        source.rows("x", [0])


def test_trees_round_trip_with_and_without_their_structure(tmp_path):
    tree = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, "list": [np.arange(3), np.float32(2)]}
    path = tmp_path / "sub" / "tree.safetensors"
    safetensors.save_tree(path, tree)
    nested = safetensors.load_tree(path)
    assert set(nested) == {"a", "list"} and set(nested["list"]) == {"0", "1"}
    same = safetensors.load_tree(path, like=tree)
    assert isinstance(same["list"], list)
    assert same["a"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(same["list"][0], np.arange(3))
    same["list"][0][0] = 5  # a copy, not the file


def test_load_tree_lists_every_difference_from_like(tmp_path):
    path = tmp_path / "t.safetensors"
    safetensors.save_tree(path, {"a": np.ones(2), "b": np.ones(3), "extra": np.ones(1)})
    with pytest.raises(WeightsError) as caught:
        safetensors.load_tree(path, like={"a": np.ones(2), "b": np.ones(4), "lost": np.ones(1)})
    for part in ("missing lost", "unexpected extra", "b has shape (3,), expected (4,)"):
        assert part in str(caught.value)


def test_ambiguous_tree_names_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="a/b"):
        safetensors.save_tree(tmp_path / "t", {"a/b": np.ones(1)})
    assert not os.listdir(tmp_path)


def test_metadata_must_be_text(tmp_path):
    with pytest.raises(WeightsError, match="step"):
        safetensors.save_tree(tmp_path / "t", {"a": np.ones(1)}, {"step": 3})  # type: ignore[dict-item]


def test_equal_trees_give_equal_bytes(tmp_path):
    a, b = np.ones(3, np.float16), np.zeros((2, 2), np.float64)
    safetensors.save_tree(tmp_path / "x", {"a": a, "b": b})
    safetensors.save_tree(tmp_path / "y", {"b": b, "a": a})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_full_disk_keeps_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    safetensors.save_tree(path, {"a": np.ones(2)})
    full = lambda _path, _mode: open("/dev/full", "wb", buffering=0)  # noqa: E731, SIM115
    monkeypatch.setattr(_safetensors_file, "open", full, raising=False)
    with pytest.raises(AssetError, match=r"disk full.*MB free"):
        safetensors.save_tree(path, {"a": np.zeros(1000)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["t.safetensors"]
    np.testing.assert_array_equal(safetensors.load_tree(path)["a"], np.ones(2))


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def blocks():
        yield np.ones(2, np.float32)
        raise KeyboardInterrupt

    tensors = {"a": safetensors.Tensor(np.dtype(np.float32), (4,), blocks)}
    with pytest.raises(KeyboardInterrupt):
        safetensors.write(tmp_path / "t", tensors, {})
    assert not os.listdir(tmp_path)


def test_blocks_of_the_wrong_size_are_refused(tmp_path):
    tensors = {
        "a": safetensors.Tensor(np.dtype(np.float32), (4,), lambda: [np.ones(3, np.float32)])
    }
    with pytest.raises(WeightsError, match="12 bytes given, its shape needs 16"):
        safetensors.write(tmp_path / "t", tensors, {})


def test_other_write_errors_are_not_disguised(tmp_path, monkeypatch):
    def broken(_path, _mode):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(_safetensors_file, "open", broken, raising=False)
    with pytest.raises(OSError, match="input/output"):
        safetensors.save_tree(tmp_path / "t", {"a": np.ones(1)})
