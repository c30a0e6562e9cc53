"""From a problem's text to the prompt that the model reads: suffix, chat template, token ids."""

from __future__ import annotations

from typing import Any


def add_suffix(text: str, suffix: str) -> str:
    """The text with the instruction suffix, unless it carries that already.

    Benchmark files often bring the suffix with them; whitespace does not count when it is looked
    for. An empty suffix adds nothing and removes nothing.
    """
    words = suffix.split()
    if not words or " ".join(words) in " ".join(text.split()):
        return text
    return text + suffix


def render_prompt(tokenizer: Any, problem_text: str, *, suffix: str) -> tuple[str, tuple[int, ...]]:
    """A prompt as text and as token ids.

    Args:
        tokenizer: a `transformers` tokenizer; its chat template is applied with the generation
            prompt when it has one, else the prompt is the plain text.
        problem_text: the question as the data set writes it.
        suffix: `data.prompt_suffix`.

    Returns:
        (text, ids). The text is what the ids spell, special tokens included.
    """
    content = add_suffix(problem_text, suffix)
    if not getattr(tokenizer, "chat_template", None):
        return content, tuple(tokenizer.encode(content))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    # The template has written the special tokens, a beginning-of-sequence token among them.
    return text, tuple(tokenizer.encode(text, add_special_tokens=False))


def render_example(
    tokenizer: Any, problem_text: str, completion: str, *, suffix: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt ids and completion ids of a supervised example; the completion ends in the EOS token.

    Raises:
        ValueError: the tokenizer has no EOS token, so that the model would never learn to stop.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "tokenizer.eos_token_id=None: a supervised example must end in it; set the tokenizer's "
            "eos_token"
        )
    _, prompt_ids = render_prompt(tokenizer, problem_text, suffix=suffix)
    completion_ids = tokenizer.encode(completion, add_special_tokens=False)
    return prompt_ids, (*completion_ids, tokenizer.eos_token_id)
