"""Files of data sets on the Hugging Face Hub.

A set without options is a snapshot of its files, for which huggingface_hub is enough. Which files
make a config or a split only its card says: these go through the package `datasets`, an extra.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polaris_jax.data.source_text import DataError, SourceText
from polaris_jax.system.files import as_place
from polaris_jax.system.text import one_line

if TYPE_CHECKING:
    from etils import epath


def download_dataset(
    name: str, suffixes: Sequence[str], *, revision: str = "", text: str = ""
) -> epath.Path:
    """The local copy of a data set on the Hub, downloaded unless it is cached.

    Args:
        name: owner/name.
        suffixes: which files are downloaded.
        revision: commit, tag or branch; "": the newest.
        text: the source as the user gave it, for errors; "": `name`.

    Raises:
        DataError: the data set does not exist or is not accessible, or there is no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return as_place(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[f"*{suffix}" for suffix in suffixes],
            )
        )
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"data.problems={text or name!r}: there is no such directory here, it is not in the "
            "Hub cache and the Hugging Face Hub cannot be reached; check the path or the network, "
            "or download the data set elsewhere and give its directory"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data.problems={text or name!r}: there is no such directory here, and as a data set "
            f"of the Hugging Face Hub it cannot be downloaded ({reason}); check the name"
        ) from error


def dataset_files(source: SourceText) -> list[epath.Path]:
    """The arrow files of a data set's config and split, by the package `datasets`.

    Args:
        source: a Hub name, or the directory of a data set, with a config or a split.

    Raises:
        DataError: `datasets` is not installed, or cannot load the set, or the set has several
            splits and none is chosen.
    """
    asked = " and ".join(name for name in ("config", "split") if getattr(source, name))
    where = f"data.problems={source.text!r}"
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"{where}: {asked} of a data set needs the package datasets, which is not installed; "
            "pip install 'polaris_jax[hub]', or download the split's files and name those"
        ) from None
    try:
        loaded = datasets.load_dataset(
            source.where,
            source.config or None,
            split=source.split or None,
            revision=source.revision or None,
        )
    except Exception as error:
        raise DataError(f"{where}: `datasets` cannot load it ({_reason(error)})") from error
    if isinstance(loaded, dict):  # one table a split
        if len(loaded) > 1 and "train" not in loaded:
            raise DataError(f"{where}: has the splits {', '.join(loaded)}; choose one with split=")
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    files = [entry["filename"] for entry in loaded.cache_files]
    if not files:
        raise DataError(f"{where}: `datasets` keeps no file of it; download it, and name its files")
    return [as_place(file) for file in files]


def _reason(error: BaseException) -> str:
    return re.sub(r"\s+", " ", one_line(error))[:300]
