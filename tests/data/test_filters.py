"""Repeats and over-long prompts leave, are counted, and nothing else changes."""

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.config.data import PROMPT_SUFFIX
from polaris_jax.data.filters import content_id, deduplicate, drop_long_prompts, normalized_text
from polaris_jax.data.prompts import PromptFormat, render_prompt
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.records import Problem


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is  1 +\n1?", " what is 1 + 1?"),
        ("Show THAT A is \\textbf{Five}.", "show that a is \\textbf{five}."),
        ("Q." + PROMPT_SUFFIX, "Q."),
        ("e\u0301", "\u00e9"),
    ],
    ids=["whitespace and case", "words", "suffix", "composed"],
)
def test_same_problem(a, b):
    assert normalized_text(a) == normalized_text(b)
    assert content_id(a) == content_id(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x²", "x2"),
        ("1+1", "1-1"),
        ("12", "1 2"),
        ("Find $\\Delta$.", "Find $\\delta$."),
        ("How many $B$ in \\(b\\)?", "How many $b$ in \\(B\\)?"),
        ("Solve \\Gamma(3).", "Solve \\gamma(3)."),
    ],
)
def test_different_problem(a, b):
    assert normalized_text(a) != normalized_text(b)


def test_deduplicate_keeps_the_first_and_tells_what_it_did():
    problems = [
        Problem("a", "What is 1 + 1?", "2"),
        Problem("b", "what is 1 + 1? ", 2),
        Problem("c", "What  is 1 + 1?", "3"),
        Problem("a", "What is 2 + 2?", "4"),
        Problem("d", "What is 3 + 3?", ["6", "six"]),
    ]
    kept, found = deduplicate(problems)
    assert [p.problem for p in kept] == [problems[0].problem, problems[3].problem, kept[2].problem]
    assert found.same_answer == (("a", "b"),)
    assert found.other_answer == (("a", "c"),)
    assert found.other_rows == ((0, 2),)
    ((old, new),) = found.renamed
    assert old == "a"
    assert new == kept[1].id != "a"
    assert len({p.id for p in kept}) == len(kept)
    assert deduplicate(kept)[0] == kept


def test_long_prompts_are_dropped_whole_at_the_limit():
    tokenizer = build_tokenizer()
    problems = [Problem(str(n), "x" * n, "1") for n in range(10)]
    tokens = {
        p.id: len(render_prompt(tokenizer, p.problem, suffix=PROMPT_SUFFIX)[1]) for p in problems
    }
    limit = tokens["6"]
    kept, dropped, _ = drop_long_prompts(
        problems,
        tokenizer,
        prompt_format=PromptFormat(PROMPT_SUFFIX),
        max_prompt_tokens=limit,
        vocab_size=9999,
    )
    assert kept == problems[:7]
    assert dropped == {id: n for id, n in tokens.items() if n > limit}


def test_a_template_that_drops_the_question_is_one_warning():
    problems = [Problem(f"p{i}", f"What is {i}+1?", str(i + 1)) for i in range(3)]
    tokenizer, told = build_tokenizer(), []
    options = {
        "prompt_format": PromptFormat(),
        "max_prompt_tokens": 999,
        "vocab_size": 9999,
        "say": told.append,
    }
    drop_long_prompts(problems, tokenizer, **options)
    assert len(told) == 1
    assert told[0].startswith("prompt of problem 'p0', ")
    assert "<|im_start|>user\\nWhat is 0+1?" in told[0]
    told.clear()
    tokenizer.chat_template = "<|im_start|>user\n<|im_end|>\n"
    kept, _, _ = drop_long_prompts(problems, tokenizer, **options)
    assert kept == problems
    assert told[1:] == [
        "warning: the prompt of problem 'p0' and 2 others does not hold its question: the "
        "tokenizer's chat template drops or changes it; mend the template"
    ]
    told.clear()
    tokenizer.chat_template = "{{ messages[0].content | trim | lower }}"
    spaced = [Problem("a", "  WHAT  is\n1? ", "1")]
    drop_long_prompts(spaced, tokenizer, **options)
    assert len(told) == 1


def test_a_token_that_the_model_does_not_know_is_refused_at_once():
    tokenizer = build_tokenizer()
    problem = Problem("far", "What is 1+1?", "2")
    largest = max(render_prompt(tokenizer, problem.problem, suffix=PROMPT_SUFFIX)[1])
    options = {"prompt_format": PromptFormat(PROMPT_SUFFIX), "max_prompt_tokens": 999}
    kept, _, _ = drop_long_prompts([problem], tokenizer, vocab_size=largest + 1, **options)
    assert kept == [problem]
    with pytest.raises(ConfigError, match=f"'far': its prompt has token id {largest}, .* another"):
        drop_long_prompts([problem], tokenizer, vocab_size=largest, **options)


def test_of_a_long_prompt_both_ends_are_shown_and_nothing_steers_the_terminal():
    told = []
    problem = Problem("p", "a" * 1000 + "\x1b[2J" + "z" * 1000, "1")
    options = {
        "prompt_format": PromptFormat(),
        "max_prompt_tokens": 9999,
        "vocab_size": 9999,
        "say": told.append,
    }
    drop_long_prompts([problem], build_tokenizer(), **options)
    assert len(told[0]) < 800
    assert "aaa ... zzz" in told[0]
    assert "\x1b" not in told[0]
