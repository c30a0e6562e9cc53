"""A tokenizer of a few hundred tokens for the procedural problems, made in memory, and ChatML.

Words of the problems are single tokens, digits are tokens of their own, and the 256 bytes stand in
for everything else: any text encodes without an unknown token and decodes to itself. The special
tokens and the chat template are Qwen's; `<think>` and `</think>` are tokens that decoding keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polaris_jax.config.data import PROMPT_SUFFIX
from polaris_jax.data.prompts import NAMED_TEMPLATES
from polaris_jax.demo import arithmetic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# Nothing is added that the messages do not hold (Qwen2.5's own template inserts a system turn).
# Source: POLARIS (blog, "example input").
CHATML = NAMED_TEMPLATES["chatml"]
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"

# A segmentation's score is the sum of its tokens': few long tokens win over many bytes.
_WORD_SCORE, _BYTE_SCORE = -1.0, -2.0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer; the same ids on every call, and after `save_pretrained`.

    Its end-of-sequence token is `<|im_end|>` and its padding token `<|endoftext|>`, as Qwen's.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from polaris_jax.models.tokenizer import import_transformers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [to_bytes.pre_tokenize_str(word)[0][0] for word in _words()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    scores = [(symbol, _BYTE_SCORE) for symbol in alphabet]
    scores += [(word, _WORD_SCORE) for word in words if word not in alphabet]
    backend = Tokenizer(models.Unigram(scores))
    backend.pre_tokenizer = to_bytes
    backend.decoder = decoders.ByteLevel()
    special = [END_OF_TEXT, TURN_START, TURN_END]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, normalized=False) for t in (THINK_START, THINK_END)])
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )


def _words() -> list[str]:
    head, box = PROMPT_SUFFIX.split("\\boxed{")
    suffix = [head, "\\boxed{", *box]
    return list(dict.fromkeys([*arithmetic.pieces(), "user\n", "assistant\n", *suffix]))
