"""The tokenizer of a checkpoint: from its directory, or from a GGUF file's metadata."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from polaris_jax.models.weights.safetensors_writer import created
from polaris_jax.models.weights.sources import GGUF_SUFFIX, resolve
from polaris_jax.system.files import is_remote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# Goes with them: the ids that end a response, and the sampling that its makers recommend.
_GENERATION_FILE = "generation_config.json"
_TEMPLATES = "additional_chat_templates"
# Any one of these holds a vocabulary.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer of an HF directory, Hub id or GGUF file.

    `tokenizer.json` is taken as it stands: the classes that tokenizer_config.json may name rebuild
    the pre-tokenizer by their own rules (R1-Distill-Qwen names Llama's over Qwen's vocabulary).

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: a GGUF tokenizer of a kind that is not supported.
    """
    place = resolve(path)
    if place.suffix == GGUF_SUFFIX:
        from polaris_jax.models.weights.gguf import gguf_tokenizer

        return gguf_tokenizer(place)
    if not has_tokenizer(place):
        raise FileNotFoundError(
            2,
            f"no tokenizer here (none of {', '.join(_VOCABULARIES)}); copy the base model's "
            "tokenizer files into it",
            str(path),
        )
    if is_remote(place):
        with tempfile.TemporaryDirectory() as local:
            copy_tokenizer(place, epath.Path(local))
            return load_tokenizer(local)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (place / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(str(place))
        return AutoTokenizer.from_pretrained(str(place))
    except Exception as error:  # `tokenizers` raises bare Exceptions for a file it cannot read
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path}: the tokenizer does not load ({reason})") from error


def has_tokenizer(directory: epath.Path) -> bool:
    """Whether a checkpoint directory brings a tokenizer."""
    return any((directory / name).is_file() for name in _VOCABULARIES)


def copy_tokenizer(source: epath.Path, target: epath.Path) -> None:
    """Copies a directory's tokenizer files and generation_config.json, byte for byte."""
    for name in (*TOKENIZER_FILES, _GENERATION_FILE):
        if (source / name).is_file():
            _copy(source / name, target / name)
    if (source / _TEMPLATES).is_dir():
        (target / _TEMPLATES).mkdir(exist_ok=True)
        for file in (source / _TEMPLATES).iterdir():
            _copy(file, target / _TEMPLATES / file.name)


def _copy(source: epath.Path, target: epath.Path) -> None:
    with created(target) as out:
        out.write(source.read_bytes())


def save_tokenizer(tokenizer: Any, target: epath.Path) -> None:
    """Writes a tokenizer's files into a directory that exists."""
    if not is_remote(target):
        tokenizer.save_pretrained(os.fspath(target))
        return
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        copy_tokenizer(epath.Path(local), target)


def token_ids(tokenizer: PreTrainedTokenizerFast | None) -> Mapping[str, int | None]:
    """The special ids that config.json carries; empty without a tokenizer."""
    if tokenizer is None:
        return {}
    return {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }


def stop_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's end of text and ChatML's end of turn."""
    ids = {tokenizer.eos_token_id}
    for token in ("<|im_end|>", "<|endoftext|>"):
        if token in tokenizer.get_vocab():
            ids.add(tokenizer.convert_tokens_to_ids(token))
    return tuple(sorted(i for i in ids if i is not None))
