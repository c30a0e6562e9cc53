"""The tiny tokenizer is exact on any text, compact on the problems, and survives being saved."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.config.data import PROMPT_SUFFIX
from polaris_jax.data.prompts import render_example, render_prompt
from polaris_jax.demo.arithmetic import arithmetic_problems, supervised_examples
from polaris_jax.demo.tiny_tokenizer import CHATML, build_tokenizer
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.reward import score_response
from tests.support.original_data import DATA, MARKS, needs_original
from tests.support.r1_tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    TEMPLATE_FILE,
    USER,
    write_r1_tokenizer,
)

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


# deepseek-ai/DeepSeek-R1-Distill-Qwen-7B (MIT), its first release's template.
OWN = TEMPLATE_FILE.read_text(encoding="utf-8")
OWN_SHA256 = "b6835114b7303ddd78919a82e4d9f7d8c26ed0d7dfc36beeb12d524f6144eab1"
THINKS = OWN.replace("{{'<｜Assistant｜>'}}", "{{'<｜Assistant｜><think>\\n'}}")

# The blog's example input, byte for byte.
PROBLEM = (
    "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards. "
    "When she walks at a constant speed of $s$ kilometers per hour, the walk takes her 4 hours, "
    "including $t$ minutes spent in the coffee shop. When she walks $s+2$ kilometers per hour, the "
    "walk takes her 2 hours and 24 minutes, including $t$ minutes spent in the coffee shop. "
    r"Suppose Aya walks at $s+\frac{1}{2}$ kilometers per hour. Find the number of minutes the "
    "walk takes her, including the $t$ minutes spent in the coffee shop."
)
BLOG_INPUT = (
    "<|im_start|>user\n" + PROBLEM + " Let's think step by step and output the final answer within "
    "\\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
)
GOLD = "204"
RIGHT = "<think>\nFirst \\boxed{1}, no: 204.\n</think>\n\nShe needs \\boxed{204} minutes."


def small_r1():
    """The tiny tokenizer with R1-Distill's special tokens; encoding adds a BOS, the harder case."""
    from tokenizers import AddedToken, processors

    tokenizer = build_tokenizer()
    special = (BOS, EOS, USER, ASSISTANT)
    tokens = [AddedToken(token, special=True, normalized=False) for token in special]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = BOS, EOS
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.convert_tokens_to_ids(BOS))]
    )
    return tokenizer


R1 = ["in memory", "from files", pytest.param("original", marks=MARKS)]
CASES = [
    *(pytest.param(kind, "own", id=f"{kind}-own") for kind in ("in memory", "from files")),
    *(pytest.param(kind, "thinks", id=f"{kind}-thinks") for kind in ("in memory", "from files")),
    pytest.param("tiny", "chatml", id="tiny-chatml"),
    *(pytest.param("original", t, id=f"original-{t}", marks=MARKS) for t in ("own", "thinks")),
]


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """A function from a kind to a tokenizer of it."""
    directory = write_r1_tokenizer(tmp_path_factory.mktemp("r1"))
    makers = {
        "tiny": build_tokenizer,
        "in memory": small_r1,
        "from files": lambda: load_tokenizer(directory),
        "original": lambda: load_tokenizer(DATA / "r1_distill_qwen_tokenizer"),
    }
    return lambda kind: makers[kind]()


TEMPLATES = {
    "own": (OWN, ASSISTANT),
    "thinks": (THINKS, ASSISTANT + "<think>\n"),
    "chatml": (CHATML, "<|im_start|>assistant\n"),
}


@pytest.fixture
def case(tokenizer_of):
    """A function from kind and template to (tokenizer with it, what its prompts end in)."""

    def made(kind, template):
        tokenizer = tokenizer_of(kind)
        tokenizer.chat_template, end = TEMPLATES[template]
        return tokenizer, end

    return made


def rewards(tokenizer, completion):
    """The train-mode reward of a completion with its stop token, decoded as a run decodes it."""
    prompt, _ = render_prompt(tokenizer, PROBLEM, suffix=PROMPT_SUFFIX)
    ids = [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
    return score_response(prompt + tokenizer.decode(ids, skip_special_tokens=True), GOLD, "train")


def test_chatml_is_the_blogs_input_byte_for_byte(case):
    tokenizer, _ = case("tiny", "chatml")
    text, ids = render_prompt(tokenizer, PROBLEM, suffix=PROMPT_SUFFIX)
    assert text.encode() == BLOG_INPUT.encode()
    assert tokenizer.decode(ids) == BLOG_INPUT


def test_chatml_with_a_system_turn_and_an_answer(case):
    tokenizer, _ = case("tiny", "chatml")
    messages = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant")]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n"
    )


@pytest.mark.parametrize("kind", R1)
def test_r1_prompts_have_one_bos_and_end_as_the_release_does(kind, case):
    for template, end in (("own", ASSISTANT), ("thinks", ASSISTANT + "<think>\n")):
        tokenizer, _ = case(kind, template)
        text, ids = render_prompt(tokenizer, PROBLEM, suffix=PROMPT_SUFFIX)
        assert text == BOS + USER + PROBLEM + PROMPT_SUFFIX + end
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids) == text


def test_the_fixture_is_the_releases_template(tokenizer_of):
    assert OWN.count("{{'<｜Assistant｜>'}}") == 1
    assert hashlib.sha256(OWN.encode()).hexdigest() == OWN_SHA256
    assert tokenizer_of("from files").chat_template == OWN


@needs_original
def test_the_fixture_is_the_originals_file(tokenizer_of):
    assert tokenizer_of("original").chat_template == OWN


@pytest.mark.parametrize(("kind", "template"), CASES)
def test_a_right_answer_scores_and_one_without_its_thinking_closed_does_not(kind, template, case):
    tokenizer, end = case(kind, template)
    # Where the prompt has opened the thinking, the model does not open it again.
    response = RIGHT.removeprefix("<think>\n") if end.endswith("<think>\n") else RIGHT
    assert rewards(tokenizer, response) == 1.0
    assert rewards(tokenizer, response.removeprefix("<think>\n")) == 1.0  # <think> is never needed
    assert rewards(tokenizer, response.replace("204} minutes", "205} minutes")) == 0.0
    assert rewards(tokenizer, response.replace("</think>", "")) == 0.0
    assert rewards(tokenizer, response.partition("</think>")[0]) == 0.0
