"""Programs on disk: found again without tracing, equal to what they stand for, never one for another."""

import dataclasses
import os

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import programs
from tiny_align_jax.data.augment import Config

X, TREE = np.arange(6, dtype=np.float32), {"w": np.full((6,), 0.3, np.float32)}


@programs.result_type
@flax.struct.dataclass
class Result:
    """What the function below returns."""

    total: jax.Array
    parts: dict


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A static argument of a class that is not the package's."""

    noise: float = 0.5


@pytest.fixture
def folder(tmp_path):
    before = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / programs.FOLDER
    jax.config.update("jax_compilation_cache_dir", before)


def _make():
    """A kept function as a new process has it, and how often it was traced."""
    traced = []

    def scaled(static, x, tree):
        traced.append(static)
        product = jnp.sin(x) * tree["w"]
        return Result(product.sum(), {"product": product, "noise": static.noise * x})

    return programs.Kept(scaled, num_static=1), traced


def test_another_process_does_not_trace_and_gets_the_same(folder):
    first, traced = _make()
    made = first(Config(noise=0.5), X, TREE)
    assert len(traced) == 1 and len(list(folder.iterdir())) == 1
    second, traced_again = _make()
    read = second(Config(noise=0.5), X, TREE)
    plain = jax.jit(lambda x, tree: _make()[0](Config(noise=0.5), x, tree))(X, TREE)
    assert not traced_again and isinstance(read, Result)
    jax.tree.map(np.testing.assert_array_equal, made, read)
    jax.tree.map(np.testing.assert_array_equal, made, plain)


def test_other_statics_shapes_or_source_are_other_programs(folder, monkeypatch):
    function, traced = _make()
    function(Config(), X, TREE)
    np.testing.assert_array_equal(function(Config(noise=2.0), X, TREE).parts["noise"], 2 * X)
    function(Config(), X[:1], TREE)
    function(Config(), X.astype(np.float16), TREE)
    assert len(traced) == len(list(folder.iterdir())) == 4
    function.forget()
    function(Config(), X, TREE)
    assert len(traced) == 4
    monkeypatch.setattr(programs, "_source_digest", lambda: "another")
    function.forget()
    function(Config(), X, TREE)
    assert len(traced) == 5


@pytest.mark.parametrize("static", [Foreign(), (Config(), Foreign())])
def test_what_is_not_the_packages_own_is_not_kept(folder, static):
    function, traced = _make()
    noisy = static if isinstance(static, Foreign) else static[1]
    if isinstance(static, tuple):
        function = programs.Kept(lambda s, x, t: (s[1].noise * x, t), num_static=1)
        assert (function(static, X, TREE)[0] == noisy.noise * X).all()
    else:
        assert function(static, X, TREE).total.shape == () and len(traced) == 1
    assert not folder.exists()


def test_what_cannot_be_written_is_jit(folder, monkeypatch):
    monkeypatch.setattr(programs, "_can_write", lambda: False)
    function, traced = _make()
    function(Config(), X, TREE)
    function(Config(), X, TREE)
    assert len(traced) == 1 and not folder.exists()


def test_under_a_transformation_it_is_jit(folder):
    function, _ = _make()
    grads = jax.grad(lambda tree: function(Config(), X, tree).total)(TREE)
    np.testing.assert_allclose(grads["w"], np.sin(X), rtol=1e-6)
    assert not folder.exists()


def test_a_damaged_file_is_made_anew(folder):
    function, _ = _make()
    made = function(Config(), X, TREE)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    other, traced = _make()
    jax.tree.map(np.testing.assert_array_equal, made, other(Config(), X, TREE))
    assert len(traced) == 1 and path.stat().st_size > 100


def test_what_is_longest_unused_goes_first(folder, monkeypatch):
    monkeypatch.setattr(programs, "MOST_FILES", 2)
    function, _ = _make()
    for size in (1, 2, 3):
        function(Config(), X[:size], {"w": TREE["w"][:1]})
    assert len(list(folder.iterdir())) == 2


def test_what_was_kept_is_read_ahead_and_nothing_else(folder):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (X, TREE))
    first, traced = _make()
    first.prepare(Config(), *shapes)
    assert not traced and not folder.exists()
    first(Config(), X, TREE)
    second, traced_again = _make()
    second.prepare(Config(), *shapes)
    (path,) = folder.iterdir()
    path.unlink()
    second(Config(), X, TREE)
    assert len(traced) == 1 and not traced_again


def test_what_was_called_last_is_read_before_it_is_known_to_be_wanted(folder, monkeypatch):
    first, _ = _make()
    made = [first(Config(), X[:size], {"w": TREE["w"][:1]}) for size in (1, 2, 3)]
    for path, size in zip(first.last_used(str(folder.parent), 3), (3, 2, 1), strict=True):
        os.utime(path, (size, size))
    second, traced = _make()
    programs.read_ahead([second], most=2)
    assert all(future.result() for future in programs._AHEAD.values())
    read = []
    monkeypatch.setattr(programs, "_read", lambda path: read.append(path))
    assert len(programs._AHEAD) == 2
    for size in (3, 2):
        found = second(Config(), X[:size], {"w": TREE["w"][:1]})
        jax.tree.map(np.testing.assert_array_equal, found, made[size - 1])
    assert not read and not traced and not programs._AHEAD
    newest = first.last_used(str(folder.parent), 1)[0]
    assert newest.stat().st_mtime > 3  # a call counts as use, reading ahead does not
    second(Config(), X[:1], {"w": TREE["w"][:1]})
    assert len(read) >= 1 and len(traced) == 1  # the third was not read ahead


def test_what_cannot_be_read_ahead_is_left_to_the_call(folder):
    function, _ = _make()
    made = function(Config(), X, TREE)
    (path,) = folder.iterdir()
    path.write_bytes(b"nothing of the kind")
    other, traced = _make()
    programs.read_ahead([other])
    jax.tree.map(np.testing.assert_array_equal, made, other(Config(), X, TREE))
    assert len(traced) == 1
