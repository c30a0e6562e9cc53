"""The suffix is added once, and the chat template is applied where there is one."""

import pytest

from polaris_jax.config.sections import PROMPT_SUFFIX
from polaris_jax.data.prompts import add_suffix, render_example, render_prompt
from polaris_jax.demo.tiny_tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def plain_tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


@pytest.mark.parametrize("text", ["What is 1 + 1?", "", "ends in a space "])
def test_suffix_is_added_once(text):
    once = add_suffix(text, PROMPT_SUFFIX)
    assert once == text + PROMPT_SUFFIX
    assert add_suffix(once, PROMPT_SUFFIX) == once


@pytest.mark.parametrize(
    "carried",
    [
        "Q." + PROMPT_SUFFIX + "\n",
        "Q.\nLet's think step by step  and output the final answer within \\boxed{}.",
        PROMPT_SUFFIX.strip() + "\nQ.",
    ],
)
def test_a_carried_suffix_is_recognised_whatever_the_whitespace(carried):
    assert add_suffix(carried, PROMPT_SUFFIX) == carried


def test_a_part_of_the_suffix_does_not_count():
    text = "Let's think step by step."
    assert add_suffix(text, PROMPT_SUFFIX) == text + PROMPT_SUFFIX


def test_an_empty_suffix_changes_nothing():
    assert add_suffix("Q." + PROMPT_SUFFIX, "") == "Q." + PROMPT_SUFFIX


def test_chat_template(tokenizer):
    text, ids = render_prompt(tokenizer, "What is 1 + 1?", suffix=" Go.")
    assert text == ("<|im_start|>user\nWhat is 1 + 1? Go.<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(ids) == text


def test_plain_text_without_template(plain_tokenizer):
    text, ids = render_prompt(plain_tokenizer, "What is 1 + 1?", suffix=" Go.")
    assert text == "What is 1 + 1? Go."
    assert plain_tokenizer.decode(ids) == text


def test_example_ends_in_the_stop_token(tokenizer):
    prompt, completion = render_example(tokenizer, "Q.", "<think>a</think>", suffix="")
    assert prompt == render_prompt(tokenizer, "Q.", suffix="")[1]
    assert completion[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(completion, skip_special_tokens=True) == "<think>a</think>"


def test_example_needs_a_stop_token(plain_tokenizer):
    plain_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        render_example(plain_tokenizer, "Q.", "a", suffix="")
