"""Problems: read, checked, made, rendered as prompts and drawn in batches. Host only."""

from polaris_jax.data.filters import deduplicate, drop_long_prompts, normalized_text
from polaris_jax.data.loader import PromptLoader
from polaris_jax.data.problems import ReadReport, read_problems, write_problems
from polaris_jax.data.prompts import add_suffix, render_example, render_prompt, render_prompts
from polaris_jax.data.sources import DataError

__all__ = [
    "DataError",
    "PromptLoader",
    "ReadReport",
    "add_suffix",
    "deduplicate",
    "drop_long_prompts",
    "normalized_text",
    "read_problems",
    "render_example",
    "render_prompt",
    "render_prompts",
    "write_problems",
]
