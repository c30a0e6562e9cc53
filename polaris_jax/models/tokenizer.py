"""Tokenizers from disk, without torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from polaris_jax.config_sections import ConfigError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(path: str | Path) -> Any:
    """The `transformers` tokenizer of a Hugging Face directory.

    Raises:
        ConfigError: the directory has no tokenizer, or one that cannot be read.
    """
    path = Path(path)
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise ConfigError(
            f"model.path={str(path)!r}: no tokenizer in it (looked for "
            f"{', '.join(TOKENIZER_FILES)}); copy the base model's tokenizer files there"
        )
    # Its remark that torch is missing is no news here.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path={str(path)!r}: unreadable tokenizer: {reason}") from error
