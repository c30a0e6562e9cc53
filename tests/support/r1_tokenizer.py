"""A small tokenizer of R1-Distill-Qwen's kind, as files: byte-level BPE, its special tokens.

The vocabulary is learned here from a few made-up texts. Text is split by transformers' own
Qwen2Tokenizer, which owes nothing to this package.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.fixtures.smollm2_cases import PROMPTS, STRINGS

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
# Decoding drops the special ones and keeps the others.
SPECIAL = (EOS, USER, ASSISTANT, BOS, "<|EOT|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_pad|>")
KEPT = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE_FILE = Path(__file__).parents[1] / "fixtures" / "r1_distill_chat_template.jinja"


def write_r1_tokenizer(directory: Path, *, vocabulary: int = 800) -> Path:
    """`directory` with tokenizer.json, tokenizer_config.json and chat_template.jinja.

    As in the release, the configuration names Llama's tokenizer class over Qwen's vocabulary.

    Args:
        directory: to write into; it is made.
        vocabulary: tokens that are learned; the added ones come behind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(models.BPE())
    # Unsplit text, so that some merges reach over words, digits and line breaks: they may only be
    # used where the split allows it, and another split gives other ids.
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=6,
    )
    learner.train_from_iterator([*STRINGS, *PROMPTS], trainer)
    backend = Qwen2Tokenizer().backend_tokenizer
    qwen = Tokenizer(learner.model)
    qwen.normalizer, qwen.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    qwen.decoder = decoders.ByteLevel()
    for tokens, special in ((SPECIAL[:5], True), (KEPT, False), (SPECIAL[5:], True)):
        added = [AddedToken(token, special=special, normalized=False) for token in tokens]
        (qwen.add_special_tokens if special else qwen.add_tokens)(added)
    directory.mkdir(parents=True, exist_ok=True)
    qwen.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
        "tokenizer_class": "LlamaTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory
