"""Where a checkpoint lies: a directory (also gs://, s3://), a GGUF file, or a Hub id to fetch."""

from __future__ import annotations

import os
import re

from etils import epath

from polaris_jax.system.files import as_place, is_remote

GGUF_SUFFIX = ".gguf"
# Weights, configuration and tokenizer; not the PyTorch, ONNX and GGUF copies beside them.
WANTED = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")


def resolve(path: str | os.PathLike[str]) -> epath.Path:
    """The directory or GGUF file of `path`; a Hub id's snapshot is downloaded or cached.

    Raises:
        FileNotFoundError: it is neither here nor a Hub id.
        ValueError: a file that is no GGUF, or a Hub id that cannot be fetched; the text says why
            and what to do.
    """
    name = os.fspath(path)
    place = as_place(path)
    if place.is_dir():
        return place
    if place.is_file():
        if place.suffix != GGUF_SUFFIX:
            raise ValueError(
                f"{path}: a file, but no {GGUF_SUFFIX}; name the checkpoint's directory"
            )
        if is_remote(path):
            raise ValueError(f"{path}: GGUF files are mapped, so copy it to a local disk first")
        return place
    if not _HUB_ID.fullmatch(name) or place.suffix == GGUF_SUFFIX:
        raise FileNotFoundError(2, "no such checkpoint directory or GGUF file", name)
    return _fetch(name)


def _fetch(hub_id: str) -> epath.Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    no_network = (
        f"model {hub_id!r}: no such directory here, and the Hugging Face Hub cannot be reached; "
        "connect to the network (and unset HF_HUB_OFFLINE), or download it elsewhere and name its "
        "directory"
    )
    try:
        return epath.Path(snapshot_download(hub_id, allow_patterns=WANTED))
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"model {hub_id!r}: no such directory here, and the Hugging Face Hub does not give it "
            "out under this name; check the spelling, accept its licence, or log in with `hf auth "
            "login`"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise ValueError(no_network) from error
    except OSError as error:
        raise ValueError(f"{no_network} ({type(error).__name__})") from error
