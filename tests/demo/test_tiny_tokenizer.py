"""The tiny tokenizer is exact on any text, compact on the problems, and survives being saved."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.config.sections import PROMPT_SUFFIX
from polaris_jax.data.prompts import render_example, render_prompt
from polaris_jax.demo.arithmetic import arithmetic_problems, supervised_examples
from polaris_jax.demo.tiny_tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " two  spaces ",
        "\n\t\\frac{1}{2} <think> 日本 x² é",
        "don't , , .. it 's",
        "a<think>b</think>c<|im_end|>d",
    ],
)
def test_awkward_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_think_tags_survive_decoding_without_special_tokens_and_control_tokens_do_not():
    text = "<think>Add 5: 7 + 5 = 12</think>\n\\boxed{12}"
    ids = TOKENIZER.encode(text + "<|im_end|>")
    assert ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    for token in ("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(TOKENIZER.encode(token)) == 1


def test_problems_and_solutions_are_words_and_single_digits():
    for problem, completion in supervised_examples(300, seed=1, slip_rate=0.3):
        for text in (problem.problem, completion):
            for token in TOKENIZER.tokenize(text):
                assert len(token) > 1 or token.isdigit() or token in ".?}", (token, text)
                digits = sum(c.isdigit() for c in token)
                assert digits == 0 or len(token) == 1
    assert len(TOKENIZER) < 400


def test_prompts_and_responses_are_short():
    train, held_out = arithmetic_problems(300, 100, seed=0)
    prompts = [
        len(render_prompt(TOKENIZER, p.problem, suffix=PROMPT_SUFFIX)[1]) for p in train + held_out
    ]
    assert max(prompts) <= 50
    examples = supervised_examples(600, seed=0, slip_rate=0.3)
    lengths = [
        len(render_example(TOKENIZER, p.problem, text, suffix=PROMPT_SUFFIX)[1])
        for p, text in examples
    ]
    assert max(lengths) <= 60
    assert len(TOKENIZER.encode(PROMPT_SUFFIX)) <= 5


def test_saved_and_loaded_it_gives_the_same_ids(tmp_path):
    """Beside a config.json, too: a Qwen model type must not bring another tokenizer class in."""
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for _, text in supervised_examples(100, seed=2, slip_rate=0.3)]
    texts += [p.problem + PROMPT_SUFFIX for p in arithmetic_problems(100, 0, seed=2)[0]]
    texts += ["日本 x² \n don't", "<|im_start|>user\nhi<|im_end|>"]
    for text in texts:
        assert loaded.encode(text) == TOKENIZER.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    assert loaded.eos_token_id == TOKENIZER.eos_token_id
    assert loaded.pad_token_id == TOKENIZER.pad_token_id
    assert loaded.chat_template == TOKENIZER.chat_template
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab() == loaded.get_vocab()
