"""What a body asks for, and what is refused with the field's name."""

import pytest

from polaris_jax.serve.fields import ApiError
from polaris_jax.serve.wishes import read_wish

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def wish(body, *, chat=False):
    return read_wish(({} if chat else {"prompt": "x"}) | body, chat=chat)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("x", ("x",)),
        (["x", "y"], ("x", "y")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["x", [1]], ("x", (1,))),
    ],
)
def test_the_forms_of_a_prompt(prompt, found):
    assert wish({"prompt": prompt}).prompts == found


def test_the_defaults_are_those_of_the_api():
    one = wish({})
    assert (one.n, one.max_tokens, one.stream, one.logprobs, one.seed) == (
        1,
        16,
        False,
        False,
        None,
    )
    assert one.settings == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    assert wish(CHAT, chat=True).max_tokens is None


def test_null_is_absent():
    fields = ("n", "temperature", "stop", "seed", "stream", "logprobs", "stream_options", "suffix")
    assert wish(dict.fromkeys(fields)) == wish({})


def test_a_chat_keeps_its_turns_and_joins_parts():
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "audio": None},
        {"role": "user", "content": "d"},
    ]
    one = wish({"messages": messages, "max_completion_tokens": 3, "max_tokens": 9}, chat=True)
    turns = (("system", "be brief"), ("user", "ab"), ("assistant", "c"), ("user", "d"))
    assert one.messages == turns
    assert one.max_tokens == 3
    args = {"enable_thinking": False, "a": "b"}
    one = wish(CHAT | {"chat_template_kwargs": args}, chat=True)
    assert one.template_args == (("a", '"b"'), ("enable_thinking", "false"))


def test_any_seed_is_one_of_ours():
    assert wish({"seed": -1}).seed == 2**32 - 1
    assert wish({"seed": 2**32 + 3}).seed == 3


def test_top_k_of_other_servers_for_off():
    assert wish({"top_k": -1}).settings["top_k"] == 0


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": None}, "prompt", "needed"),
        ({"prompt": []}, "prompt", "needed"),
        ({"prompt": [1, "x"]}, "prompt", "token ids"),
        ({"prompt": [True]}, "prompt", "token ids"),
        ({"prompt": [-1]}, "prompt", "token ids"),
        ({"prompt": {"a": 1}}, "prompt", "needed"),
        ({"n": 0}, "n", "n=0: must be in [1, 128]"),
        ({"n": 1.5}, "n", "whole number"),
        ({"n": True}, "n", "whole number"),
        ({"max_tokens": 0}, "max_tokens", "or 0 with echo"),
        ({"max_tokens": 0, "echo": True, "n": 2}, "n", "must be 1"),
        ({"max_tokens": "9"}, "max_tokens", "whole number"),
        ({"temperature": -0.1}, "temperature", "must be in [0, 100]"),
        ({"temperature": 1e-40}, "temperature", "must be 0, or at least 1e-30"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": 10**400}, "temperature", "must be in [0, 100]"),
        ({"temperature": float("nan")}, "temperature", "must be in [0, 100]"),
        ({"seed": 10**30}, "seed", f"must be in [{-(2**63)}, {2**63}]"),
        ({"max_tokens": 2**64}, "max_tokens", f"must be in [0, {2**63}]"),
        ({"top_p": 0}, "top_p", "must be in"),
        ({"min_p": 1.1}, "min_p", "must be in [0, 1]"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "goes with stream"),
        (
            {"stream": True, "stream_options": {"include_usage": "yes"}},
            "stream_options",
            "include_usage must be true or false",
        ),
        ({"stream": True, "stream_options": {"usage": 1}}, "stream_options", "there is no usage"),
        ({"stop": ""}, "stop", "none empty"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": "x" * 2000}, "stop", "1024 characters"),
        ({"stop_token_ids": "x"}, "stop_token_ids", "must be a list"),
        ({"stop_token_ids": ""}, "stop_token_ids", "must be a list"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids", "token ids"),
        ({"stop_token_ids": list(range(17))}, "stop_token_ids", "17 ids, at most 16"),
        ({"logprobs": 21}, "logprobs", "must be in [0, 20]"),
        ({"best_of": 2}, "best_of", "must be n=1"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"model": 3}, "model", "must be a text"),
        ({"n": ["x" * 9000] * 9}, "n", f'n=["{"x" * 58}...: must be a whole number'),
        ({"x" * 9000: 1}, "x" * 60, "no such field"),
    ],
)
def test_a_wrong_field_is_named(body, param, said):
    with pytest.raises(ApiError) as error:
        wish(body)
    assert error.value.status == 400
    assert error.value.param == param
    assert said in error.value.text
    assert error.value.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "messages", "needed"),
        ({"messages": [{"role": "user"}]}, "messages", "content: must be a text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "role: must be one of"),
        ({"messages": [{"role": ["a"], "content": "x"}]}, "messages", "role: must be one of"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]},
            "messages",
            "messages[0].tool_calls: not supported",
        ),
        (CHAT | {"top_logprobs": 2}, "top_logprobs", "logprobs=true"),
        (CHAT | {"tools": [{"type": "function"}]}, "tools", "not supported"),
        (CHAT | {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        (CHAT | {"chat_template_kwargs": {"a": []}}, "chat_template_kwargs", "plain values"),
        (CHAT | {"prompt": "x"}, "prompt", "no such field"),
    ],
)
def test_a_wrong_chat_is_named(body, param, said):
    with pytest.raises(ApiError) as error:
        wish(body, chat=True)
    assert (error.value.status, error.value.param) == (400, param)
    assert said in error.value.text


def test_a_prompt_over_the_context_is_refused():
    sizes = {"max_len": 10, "end_ids": (), "decode": str}
    params = wish({"max_tokens": 7}).params(((1, 2, 3),), **sizes)
    assert params.max_tokens == [7]
    with pytest.raises(ApiError) as error:
        wish({"max_tokens": 8}).params(((1, 2, 3),), **sizes)
    assert error.value.code == "context_length_exceeded"
    assert wish(CHAT, chat=True).params(((1, 2, 3),), **sizes).max_tokens == [7]
    with pytest.raises(ApiError, match="no token"):
        wish({}).params(((),), **sizes)


def test_an_answer_of_too_many_logprobs_is_refused():
    prompts = [(1,) * 100] * 2
    body = {"n": 100, "max_tokens": 5_000, "logprobs": 7}  # 2 x 100 x 5,000 x 8
    wish(body).require_small_answer(prompts, max_len=6_000)
    with pytest.raises(ApiError, match="1,000,200 tokens with 8 log-probs each"):
        wish(body | {"echo": True}).require_small_answer(prompts, max_len=6_000)
    wish(body | {"logprobs": None}).require_small_answer(prompts * 99, max_len=6_000)
    one = CHAT | {"n": 128, "logprobs": True}
    wish(one, chat=True).require_small_answer(prompts[:1], max_len=32_768)
    with pytest.raises(ApiError, match="lower max_tokens, n"):
        wish(one | {"top_logprobs": 1}, chat=True).require_small_answer(prompts[:1], max_len=32_868)


def test_end_ids_and_seeds():
    sizes = {"max_len": 99, "end_ids": (5, 6), "decode": str}
    one = wish({"stop_token_ids": [7, 5], "seed": 3}).params(((1,), (2,)), **sizes)
    assert one.stop_token_ids == (7, 5, 6)
    assert one.seed == [3, 3]
    assert wish({"ignore_eos": True}).params(((1,),), **sizes).stop_token_ids == ()
    seeds = {seed for _ in range(9) for seed in wish({}).params(((1,), (2,)), **sizes).seed}
    assert len(seeds) > 9  # another one for each prompt of each request
