"""What the application serves: a child that runs before the first request encodes prompts."""

from __future__ import annotations

import pytest

from polaris_jax.data import prompt_child
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.serve.fields import ApiError
from polaris_jax.serve.service import Prompts
from polaris_jax.serve.wishes import read_wish


def chat(text):
    return read_wish({"messages": [{"role": "user", "content": text}]}, chat=True)


def test_the_first_request_and_those_after_a_refused_one_wait_for_no_child(tmp_path, monkeypatch):
    build_tokenizer().save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}x"
    )
    prompts = Prompts(tokenizer)
    prompts.start()
    monkeypatch.setattr(prompt_child, "Child", None)
    expected = prompts.render(chat("yes"))
    with pytest.raises(ApiError, match=r"messages: .*not that.*; send roles in an order") as error:
        prompts.render(chat("no"))
    assert error.value.param == "messages"
    assert prompts.render(chat("yes")) == expected
    prompts.close()


def test_a_tokenizer_in_memory_needs_no_child():
    prompts = Prompts(build_tokenizer())
    prompts.start()
    assert prompts.render(chat("yes"))
    prompts.close()
