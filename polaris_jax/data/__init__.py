"""Problems: read, checked, made, rendered as prompts and drawn in batches. Host only."""

from polaris_jax.data.arithmetic import arithmetic_problems, supervised_examples
from polaris_jax.data.filters import deduplicate, drop_long_prompts, normalized_text
from polaris_jax.data.loader import PromptLoader
from polaris_jax.data.prompts import add_suffix, render_example, render_prompt
from polaris_jax.data.tiny_tokenizer import build_tokenizer

__all__ = [
    "PromptLoader",
    "add_suffix",
    "arithmetic_problems",
    "build_tokenizer",
    "deduplicate",
    "drop_long_prompts",
    "normalized_text",
    "render_example",
    "render_prompt",
    "supervised_examples",
]
