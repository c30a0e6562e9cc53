"""Digests of what a command takes from a model: weights, tokenizer, chat template, end ids."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.tokenizer import stop_token_ids
from polaris_jax.models.weights.sources import files_digest, named_files, resolve
from polaris_jax.system.files import AnyPath
from polaris_jax.system.foreign import open_regular

# Parts of a model that a run's identity names apart. tokenizer_config.json may hold the template.
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
TOKENIZER = [
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
]
TEMPLATE = ["*.jinja", "tokenizer_config.json"]
MADE_WITH = "warmstart.json"  # of `polaris_jax.demo.warmstart`
GGUF_METADATA_BYTES = 1 << 25


def model_inputs(path: str, tokenizer: Any, model_config: ModelConfig) -> dict[str, Any]:
    """Digests of the model that a command samples from, by name; see `run.identity`."""
    ids = sorted(stop_token_ids(tokenizer, model_config.end_ids))
    return model_identity(path) | {
        "architecture": model_config.architecture(),
        "stop ids": ", ".join(map(str, ids)),
    }


def model_identity(path: AnyPath) -> dict[str, str]:
    """Digests of what a run takes from `model.path`, by name.

    Weights are read in samples, as `weights_digest` does. Tokenizer and chat template are read
    completely, since one swapped digit in tokenizer.json makes another tokenizer.

    Args:
        path: HF directory, Hub id or GGUF file.

    Returns:
        16 hex digits each of "weights", "tokenizer" and "chat template", and of "warm start" if the
        directory says with which settings a warm start has made them: their last bits depend on the
        machine.
    """
    place = resolve(path)
    if not place.is_dir():
        with open_regular(place) as file:  # metadata come first: tokenizer and template among them
            metadata = hashlib.blake2b(file.read(GGUF_METADATA_BYTES), digest_size=8).hexdigest()
        return {"weights": files_digest([place]), "tokenizer": metadata, "chat template": metadata}
    found = {
        "weights": files_digest(named_files(place, WEIGHTS)),
        "tokenizer": files_digest(named_files(place, TOKENIZER), completely=True),
        "chat template": files_digest(named_files(place, TEMPLATE), completely=True),
    }
    if made_with := named_files(place, [MADE_WITH]):
        found["warm start"] = files_digest(made_with, completely=True)
    return found


def tokenizer_digests(tokenizer: Any) -> dict[str, str]:
    """16 hex digits each of "tokenizer" and "chat template", of a tokenizer in memory."""
    contents = {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "chat template": json.dumps(tokenizer.chat_template),
    }
    return {
        name: hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        for name, text in contents.items()
    }
