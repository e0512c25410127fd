"""Hub models, through the real client against a small server of our own on localhost."""

import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator

import huggingface_hub
import numpy as np
import pytest

from tests.weights import writers
from tiny_align_jax.types import AssetError
from tiny_align_jax.weights import _hub, assets
from tiny_align_jax.weights.catalogue import ASSETS

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """Just enough of the hub's API: model info with file digests, and files."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - one server per test sets it
    digests: dict[str, str] = {}  # noqa: RUF012
    fetched: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny"):
            return self._send(json.dumps(self._info()).encode(), {}, with_body)
        prefix = f"/org/tiny/resolve/{_COMMIT}/"
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if with_body:
            self.fetched.append(name)
        etag = hashlib.sha256(self.files[name]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": _COMMIT}
        return self._send(self.files[name], headers, with_body)

    def _info(self):
        siblings = []
        for name, data in self.files.items():
            sibling = {"rfilename": name, "size": len(data)}
            if name.endswith(".safetensors"):
                digest = self.digests.get(name, hashlib.sha256(data).hexdigest())
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 1}
            siblings.append(sibling)
        return {
            "id": "org/tiny",
            "sha": _COMMIT,
            "siblings": siblings,
            "cardData": {"license": "apache-2.0"},
        }

    def _send(self, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_args):
        """Quiet."""


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[type[_Hub]]:
    """A running server, made the client's default hub."""
    handler = type("Handler", (_Hub,), {"files": {}, "digests": {}, "fetched": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    _point_client_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def _point_client_at(monkeypatch, endpoint: str) -> None:
    original = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: original(endpoint=endpoint))


def _weights_bytes(tmp_path, name="w") -> bytes:
    writers.write_safetensors(tmp_path / name, {"a": np.arange(5.0)})
    return (tmp_path / name).read_bytes()


def test_only_the_needed_files_are_fetched(hub, tmp_path):
    hub.files |= {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": _weights_bytes(tmp_path),
        "model.fp32-00001-of-00002.safetensors": b"other precision",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "README.md": b"text",
    }
    found = assets.resolve("org/tiny", tmp_path / "cache")
    assert sorted(set(hub.fetched)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert found.name == "org/tiny" and found.licence == "apache-2.0"
    assert found.origin == f"hub org/tiny at {_COMMIT}"
    np.testing.assert_array_equal(found.source().read("a"), np.arange(5.0))
    files = sorted(p.name for p in found.path.iterdir())
    assert files == ["asset.json", "config.json", "model.safetensors", "tokenizer.json"]
    hub.fetched.clear()
    assert assets.resolve("org/tiny", tmp_path / "cache") == found and not hub.fetched


def test_shards_are_found_through_the_index(hub, tmp_path):
    shards = {f"model-0000{i}-of-00002.safetensors": {f"x{i}": np.full(3, i)} for i in (1, 2)}
    writers.write_sharded(tmp_path, shards)
    hub.files |= {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    hub.files["config.json"] = b"{}"
    found = assets.resolve("org/tiny@main", tmp_path / "cache")
    assert found.source().names() == ("x1", "x2")


def test_a_corrupted_file_is_refused_and_nothing_kept(hub, tmp_path):
    hub.files |= {"config.json": b"{}", "model.safetensors": _weights_bytes(tmp_path)}
    hub.digests["model.safetensors"] = "0" * 64
    with pytest.raises(AssetError, match=r"model\.safetensors fail their SHA-256"):
        assets.resolve("org/tiny", tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("files", "message"),
    [({"pytorch_model.bin": b"x"}, r"pytorch_model\.bin.*pickles"), ({}, "no weights")],
)
def test_models_without_safetensors_are_refused(hub, tmp_path, files, message):
    hub.files |= {"config.json": b"{}", **files}
    with pytest.raises(AssetError, match=message):
        assets.resolve("org/tiny", tmp_path / "cache")


def test_an_unknown_model_names_id_and_gate(hub, tmp_path):
    with pytest.raises(AssetError, match=r"no 'org/other' for you.*hf auth login"):
        assets.resolve("org/other", tmp_path / "cache")


@pytest.fixture
def no_network(monkeypatch):
    """The client's hub is a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        _point_client_at(monkeypatch, f"http://127.0.0.1:{probe.getsockname()[1]}")
        yield


def test_without_network_the_error_says_so(no_network, tmp_path):
    with pytest.raises(_hub.HubUnreachable, match=r"could not be reached.*local folder"):
        assets.resolve("org/tiny", tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_without_network_the_packaged_copy_of_a_hub_model_is_used(
    no_network, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(assets, "_fetch", lambda asset, staging: asked.append(asset.name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        assets.resolve("openai/whisper-base", tmp_path / "cache")
    assert asked == ["whisper-base"]
    assert ASSETS["whisper-base"].hub_id == "openai/whisper-base"
