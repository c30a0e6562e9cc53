"""What a config must know of a model: its size, its context, its tags and its chat template."""

from __future__ import annotations

import dataclasses
from typing import Any

from polaris_jax.models import ModelConfig, load_config
from polaris_jax.models.positions import positions_of
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.reward.configured import has_tags


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What was found.

    Attributes:
        path: directory, Hub id or GGUF file.
        config: the architecture.
        tokenizer: the model's tokenizer.
        template: True if the tokenizer has a chat template.
        tags: True if its vocabulary or its template has `</think>`.
        context_tokens: positions that the checkpoint was made for, under its own rotary scaling.
    """

    path: str
    config: ModelConfig
    tokenizer: Any
    template: bool
    tags: bool
    context_tokens: int

    def lines(self) -> list[str]:
        """The facts for a person."""
        count = self.config.num_parameters
        size = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
        chat = "a chat template" if self.template else "no chat template (prompts are plain texts)"
        tags = "with </think>" if self.tags else "without </think>"
        return [
            f"{self.config.model_type}, {size} parameters, {self.config.num_layers} layers, "
            f"{self.context_tokens:,} positions, {self.config.vocab_size:,} tokens {tags}, {chat}"
        ]


def look_at_model(path: str) -> ModelFacts:
    """The facts of a checkpoint, without its weights.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it has no tokenizer.
        ValueError: its family is not supported, or a file of it is damaged.
    """
    config, tokenizer = load_config(path), load_tokenizer(path)
    return ModelFacts(
        path=path,
        config=config,
        tokenizer=tokenizer,
        template=bool(getattr(tokenizer, "chat_template", None)),
        tags=has_tags(tokenizer),
        context_tokens=positions_of(config),
    )
