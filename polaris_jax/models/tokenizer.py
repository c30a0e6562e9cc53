"""The tokenizer of a checkpoint: from its directory, or from a GGUF file's metadata."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from polaris_jax.models.config import ModelConfig, shortened
from polaris_jax.models.weights.sources import GGUF_SUFFIX, resolve
from polaris_jax.system.files import entries, is_remote, write_bytes
from polaris_jax.system.foreign import (
    DOWNLOAD,
    TOKENIZER_BYTES,
    TOKENIZER_PATH,
    ForeignFileError,
    one_line,
    read_bytes,
    read_json,
    read_text,
    require_regular,
    shown,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    _CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    _TEMPLATE_FILE,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# Goes with them: the ids that end a response, and the sampling that its makers recommend.
GENERATION_FILE = "generation_config.json"
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_TEMPLATES = "additional_chat_templates"
_MOST_DECODED_CHARS = 64  # of what a decoder puts in the place of a token
# Any one of these holds a vocabulary.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
TokenId = int | list[int] | None  # a special id of config.json
_keeping = ContextVar("keeping tokenizers", default=False)


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer of an HF directory, Hub id or GGUF file.

    `tokenizer.json` is taken as it stands: the classes that tokenizer_config.json may name rebuild
    the pre-tokenizer by their own rules (R1-Distill-Qwen names Llama's over Qwen's vocabulary).

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: a file of it is damaged, or a GGUF tokenizer is of a kind that is not supported.
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
            return as_foreign(_load(epath.Path(local), shown(path)), path)
    if not _keeping.get():
        return as_foreign(_load(place, shown(path)), path)
    files = [file for name in TOKENIZER_FILES if (file := Path(place, name)).exists()]
    stamp = tuple((file.name, *_stamp(file.stat())) for file in files)
    return _kept(os.fspath(place), shown(path), os.fspath(path), stamp)


@contextlib.contextmanager
def kept_tokenizers() -> Iterator[None]:
    """While it is open, `load_tokenizer` reads unchanged files once, and returns the same object.

    For a process that trains and scores one small model many times: the object keeps its rendered
    prompts, and a process that renders takes seconds to start. Its callers must not change it.
    """
    before = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(before)
        _kept.cache_clear()


@functools.lru_cache(maxsize=4)
def _kept(place: str, where: str, path: str, stamp: object) -> Any:
    del stamp  # another time or size of a file is another tokenizer
    return as_foreign(_load(epath.Path(place), where), path)


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _load(place: epath.Path, where: str) -> Any:
    check_tokenizer_files(place)
    transformers = import_transformers()
    try:
        if (place / "tokenizer.json").is_file():
            return transformers.PreTrainedTokenizerFast.from_pretrained(str(place))
        return transformers.AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` raises bare Exceptions, and Rust's panics
        raise ForeignFileError(
            f"{where}: the tokenizer does not load ({one_line(error)}); {DOWNLOAD}"
        ) from error


def as_foreign(tokenizer: Any, path: str | os.PathLike[str]) -> Any:
    """The tokenizer, marked as loaded from `path`: its prompts are rendered in a child process.

    Raises:
        ForeignFileError: its chat template is neither a text nor a table of texts.
    """
    template = tokenizer.chat_template
    texts = list(template.values()) if isinstance(template, dict) else [template]
    if template is not None and not all(isinstance(text, str) for text in texts):
        raise ForeignFileError(
            f"{shown(path)}: its chat_template is no text; mend tokenizer_config.json"
        )
    setattr(tokenizer, TOKENIZER_PATH, os.fspath(path))
    return tokenizer


def check_tokenizer_files(place: epath.Path) -> None:
    """Checks kinds, sizes and nesting of tokenizer files, before a library reads them.

    Raises:
        ForeignFileError: the text names the file and the defect.
    """
    for name in TOKENIZER_FILES:
        file = place / name
        if not file.exists():
            continue
        if name.endswith(".json"):
            fields = read_json(file, most_bytes=TOKENIZER_BYTES, strict=False)
            if name == "tokenizer.json":
                _check_decoder(fields.get("decoder"), shown(file))
        elif name.endswith(".jinja"):
            read_text(file)
        else:
            read_bytes(file, most_bytes=TOKENIZER_BYTES)
    for file in entries(place / _TEMPLATES):
        read_text(file)


def _check_decoder(decoder: Any, where: str) -> None:
    """Refuses decoders whose time or output does not follow from the number of tokens.

    Responses are decoded in this process. Its other parts are one pass over the text.
    """
    if not isinstance(decoder, dict):
        return
    pattern = decoder.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern:
        raise ForeignFileError(
            f"{where}: decoder.pattern is a regular expression, which is not supported; name a "
            "text there"
        )
    content = decoder.get("content")
    if isinstance(content, str) and len(content) > _MOST_DECODED_CHARS:
        raise ForeignFileError(
            f"{where}: decoder.content has {len(content):,} characters, more than "
            f"{_MOST_DECODED_CHARS}; {DOWNLOAD}"
        )
    parts = decoder.get("decoders")
    for part in parts if isinstance(parts, list) else ():
        _check_decoder(part, where)


def import_transformers() -> Any:
    """The `transformers` package, imported without its advice to install PyTorch.

    Nothing here needs PyTorch. The variable that silences the advice is set during the import only,
    so that a program that imports us keeps its own setting.
    """
    before = os.environ.get(_NO_ADVICE)
    os.environ[_NO_ADVICE] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[_NO_ADVICE]
        else:
            os.environ[_NO_ADVICE] = before
    return transformers


def has_tokenizer(directory: epath.Path) -> bool:
    """Whether a checkpoint directory brings a tokenizer."""
    return any((directory / name).is_file() for name in _VOCABULARIES)


def copy_tokenizer(source: epath.Path, target: epath.Path) -> None:
    """Copies a directory's tokenizer files and generation_config.json, byte for byte."""
    for name in (*TOKENIZER_FILES, GENERATION_FILE):
        if (source / name).exists():
            _copy(source / name, target / name)
    for file in entries(source / _TEMPLATES):
        (target / _TEMPLATES).mkdir(exist_ok=True)
        _copy(file, target / _TEMPLATES / file.name)


def _copy(source: epath.Path, target: epath.Path) -> None:
    require_regular(source)
    write_bytes(target, source.read_bytes())  # in the place of a link or a pipe, not into it


def save_tokenizer(tokenizer: Any, target: epath.Path) -> None:
    """Writes a tokenizer's files, which transformers 4 and 5 load, into a directory that exists."""
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        make_portable(epath.Path(local))
        copy_tokenizer(epath.Path(local), target)


def make_portable(directory: epath.Path) -> None:
    """Gives a directory's tokenizer_config.json the names that transformers 4 knows, too.

    Version 5 writes a class that version 4 does not have, and a list where version 4 expects a
    table. It still reads the earlier names of both.
    """
    file = directory / _CONFIG_FILE
    if not file.exists():
        return
    fields = read_json(file, most_bytes=TOKENIZER_BYTES, strict=False)
    portable = dict(fields)
    if fields.get("tokenizer_class") == "TokenizersBackend":
        portable["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        portable["additional_special_tokens"] = portable.pop("extra_special_tokens")
    if portable != fields:
        text = json.dumps(portable, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_bytes(file, text.encode())


def replace_tokenizer(
    tokenizer: Any, target: epath.Path, *, end_ids: Sequence[int], template: str | None = None
) -> None:
    """Makes a directory's tokenizer files those of a loaded tokenizer, and no others.

    Args:
        tokenizer: the files of the directory that it was loaded from are copied as they are;
            without such a directory they are written anew.
        target: a directory that exists.
        end_ids: the ids that end a response, for generation_config.json; the other entries that
            the tokenizer's directory has there stay.
        template: the chat template that the model is trained with; None or empty: the tokenizer's
            own stays.
    """
    with tempfile.TemporaryDirectory() as made:
        local, path = epath.Path(made), getattr(tokenizer, TOKENIZER_PATH, None)
        source = None if path is None else resolve(path)
        if source is not None and source.is_dir() and has_tokenizer(source):
            copy_tokenizer(source, local)
        else:
            save_tokenizer(tokenizer, local)
        if end_ids:
            file = local / GENERATION_FILE
            fields = read_json(file) if file.exists() else {}
            write_bytes(file, _json_line({**fields, "eos_token_id": list(end_ids)}))
        if template:
            write_bytes(local / _TEMPLATE_FILE, template.encode())  # comes before any other
        copy_tokenizer(local, target)
        templates = target / _TEMPLATES
        names = [f"{_TEMPLATES}/{file.name}" for file in entries(templates)]
        for name in (*TOKENIZER_FILES, GENERATION_FILE, *names):
            if not (local / name).exists():
                (target / name).unlink(missing_ok=True)


def read_end_ids(
    directory: epath.Path, *fields: Mapping[str, Any], vocab_size: int
) -> tuple[int, ...]:
    """The ids that end a response by a directory's generation_config.json and by `fields`.

    Args:
        directory: directory of a checkpoint or a tokenizer.
        fields: other mappings with an `eos_token_id`, such as the content of config.json.
        vocab_size: size of the vocabulary; ids outside are never sampled, and are left out.

    Returns:
        All ids, each once, the ids of generation_config.json first.

    Raises:
        ValueError: generation_config.json is not JSON, or an `eos_token_id` is neither an id nor a
            list of ids.
    """
    file, sources = directory / GENERATION_FILE, list(fields)
    if file.exists():
        sources.insert(0, read_json(file, remedy="restore the file or delete it"))
    found: dict[int, None] = {}
    for source in sources:
        ids = source.get("eos_token_id")
        for i in [] if ids is None else ids if isinstance(ids, list) else [ids]:
            if isinstance(i, bool) or not isinstance(i, int):
                raise ValueError(
                    f"{directory}: eos_token_id={shortened(ids)}: must be a token id or a list of "
                    "token ids"
                )
            found[i] = None
    return tuple(i for i in found if 0 <= i < vocab_size)


def save_end_ids(end_ids: Sequence[int], target: epath.Path) -> None:
    """Writes the ids that end a response as a directory's generation_config.json.

    Args:
        end_ids: if there are none, nothing is written.
        target: a directory that exists; a file that is there stays.
    """
    file = target / GENERATION_FILE
    if end_ids and not file.is_file():
        write_bytes(file, _json_line({"eos_token_id": list(end_ids)}))


def _json_line(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields) + "\n").encode()


def token_ids(tokenizer: PreTrainedTokenizerFast | None) -> Mapping[str, TokenId]:
    """The special ids that config.json carries; empty without a tokenizer."""
    if tokenizer is None:
        return {}
    return {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }


def stop_token_ids(tokenizer: Any, end_ids: Iterable[int] = ()) -> tuple[int, ...]:
    """The ids that end a response in training and evaluation, ascending.

    Args:
        tokenizer: its end of text, and ChatML's end of turn and end of text if it has them.
        end_ids: the checkpoint's own, `ModelConfig.end_ids`.
    """
    ids = {tokenizer.eos_token_id, *end_ids}
    for token in ("<|im_end|>", "<|endoftext|>"):
        if token in tokenizer.get_vocab():
            ids.add(tokenizer.convert_tokens_to_ids(token))
    return tuple(sorted(i for i in ids if i is not None))


def sampled_stop_ids(tokenizer: Any, config: ModelConfig) -> tuple[int, ...]:
    """`stop_token_ids` that the model can sample: a tokenizer may have more tokens than a model."""
    ids = stop_token_ids(tokenizer, config.end_ids)
    return tuple(i for i in ids if 0 <= i < config.vocab_size)
