"""Where a checkpoint lies: a directory (also gs://, s3://), a GGUF file, or a Hub id to fetch."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence

from etils import epath

from polaris_jax.system import processes
from polaris_jax.system.files import AnyPath, as_place, is_remote
from polaris_jax.system.foreign import open_regular

GGUF_SUFFIX = ".gguf"
# Weights, configuration and tokenizer; not the PyTorch, ONNX and GGUF copies beside them.
WANTED = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
# Nested checkpoints and other forms, which are not read.
UNWANTED = ["*/*.safetensors", "*/*.json", "consolidated*"]
SAMPLES = 16  # parts of a file that its digest reads
SAMPLE_BYTES = 1 << 16
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
        return epath.Path(
            snapshot_download(hub_id, allow_patterns=WANTED, ignore_patterns=UNWANTED)
        )
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


def agree_on_weights(path: AnyPath, *, name: str = "base model") -> None:
    """Checks that all processes of a run find the same model at `path`.

    Args:
        path: HF directory, Hub id, GGUF file or a step's directory.
        name: what errors call it.

    Raises:
        ConfigError: names the digests and the processes that hold each.
    """
    if processes.several():  # alone there is nothing to read files for
        processes.agree({name: weights_digest(resolve(path))})


def weights_digest(place: epath.Path) -> str:
    """16 hex digits of a model's files: their names, sizes and a sample of their bytes.

    The sample is spread over each file: a tuned model may share its first and last tensors with the
    one that it comes from. A checkpoint's step is known by its manifest, which has every checksum.
    """
    return files_digest(named_files(place, WANTED) if place.is_dir() else [place])


def named_files(folder: epath.Path, patterns: Sequence[str]) -> list[epath.Path]:
    """The files of a folder whose name fits a pattern, by name."""
    named = [p for p in folder.iterdir() if any(fnmatch.fnmatch(p.name, w) for w in patterns)]
    return sorted((path for path in named if not path.is_dir()), key=lambda path: path.name)


def files_digest(files: Iterable[epath.Path], *, completely: bool = False) -> str:
    """16 hex digits of files: names, sizes, and their bytes or a sample of them."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(json.dumps([path.name, size]).encode())
            if completely:
                file.seek(0)
                while block := file.read(SAMPLE_BYTES):
                    digest.update(block)
                continue
            for i in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
