"""Model folders from the Hugging Face hub: only the files that are read, never a pickle."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from tiny_align_jax.types import AssetError
from tiny_align_jax.weights.folder import sha256
from tiny_align_jax.weights.safetensors import INDEX_FILE, WEIGHTS_FILE, weight_map

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_TRANSPORTS = ("requests", "urllib3", "httpx", "httpx2", "httpcore")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class HubUnreachable(AssetError):
    """The hub did not answer: no network, a proxy, or an outage."""


def is_hub_id(name: str) -> bool:
    """Whether `name` looks like `org/name` or `org/name@revision`."""
    return _HUB_ID.fullmatch(name) is not None


def folder_name(hub_id: str) -> str:
    """A flat folder name for a hub id."""
    return "hub--" + re.sub(r"[/@]", "--", hub_id)


def fetch(hub_id: str, folder: Path) -> tuple[str, str]:
    """Downloads the needed files of `hub_id` into `folder` and checks their SHA-256.

    Args:
        hub_id: `org/name` or `org/name@revision`.
        folder: where the files go; it is empty.

    Returns:
        licence and commit of what was downloaded.

    Raises:
        HubUnreachable: no answer.
        AssetError: no such model, no access, no safetensors in it, or a corrupted file.
    """
    repo_id, _, revision = hub_id.partition("@")
    api = huggingface_hub.HfApi()
    try:
        info = api.model_info(repo_id, revision=revision or None, files_metadata=True)
        digests = {s.rfilename: s.lfs.sha256 if s.lfs else None for s in info.siblings or ()}

        def download(name: str) -> Path:
            return Path(api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=folder))

        small = [name for name in _SMALL_FILES if name in digests]
        for name in small:
            download(name)
        weights = _weights(hub_id, digests, download)
        for name in weights:
            download(name)
    except Exception as error:
        raise _explained(hub_id, error) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's book-keeping
    _check(hub_id, folder, {name: digests.get(name) for name in weights})
    return _licence(info), info.sha or "unknown revision"


def _weights(
    hub_id: str, digests: Mapping[str, str | None], download: Callable[[str], Path]
) -> list[str]:
    """Names of the weight files: one file, or the index's shards (the index is then downloaded)."""
    if WEIGHTS_FILE in digests:
        return [WEIGHTS_FILE]
    if INDEX_FILE in digests:
        return sorted(set(weight_map(download(INDEX_FILE)).values()))
    pickles = [n for n in digests if n.endswith((".bin", ".pt", ".ckpt"))]
    reason = (
        f"only {', '.join(pickles[:3])}, and pickles are never read" if pickles else "no weights"
    )
    raise AssetError(f"hub model {hub_id} has {reason}; take a revision with {WEIGHTS_FILE}")


def _explained(hub_id: str, error: Exception) -> Exception:
    """What the client's exception means to a user; other exceptions as they are."""
    refused = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError)
    if isinstance(error, refused):
        return AssetError(
            f"the hub has no {hub_id!r} for you ({type(error).__name__}): check the id, and for a "
            "gated model accept its licence on its page and run `hf auth login`"
        )
    library = type(error).__module__.partition(".")[0]
    known = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    # the client's transport has been requests, httpx and httpx2: judge by where the error comes from
    if isinstance(error, known) or library in _TRANSPORTS:
        return HubUnreachable(
            f"the hub could not be reached for {hub_id} ({type(error).__name__}: {error}); check the "
            "network, or pass a local folder"
        )
    return error


def _check(hub_id: str, folder: Path, digests: Mapping[str, str | None]) -> None:
    wrong = [n for n, digest in digests.items() if digest and sha256(folder / n) != digest]
    if wrong:
        raise AssetError(f"{hub_id}: {', '.join(wrong)} fail their SHA-256; fetch again")


def _licence(info: huggingface_hub.ModelInfo) -> str:
    card = info.card_data.to_dict() if info.card_data else {}
    return str(card.get("license", "unknown"))
