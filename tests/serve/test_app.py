"""A real server, asked by sockets: answers are the sampler's, and refusals have one form."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from polaris_jax.commands import serve as serve_command
from polaris_jax.config import ConfigError
from polaris_jax.data.prompts import render_prompt
from polaris_jax.models import save_pretrained
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.serve.answers import Vocabulary, to_json
from polaris_jax.serve.http import Limits
from tests.support.serving import JSON, SIZES, running, small_model
from tests.tolerances import SERVED_LOGPROB

pytestmark = pytest.mark.xdist_group("serve")
PLAIN, CHATS = "/v1/completions", "/v1/chat/completions"
CHAT = {"messages": [{"role": "user", "content": "What is 3 plus 4?"}]}
BODY_S = 1.0


@pytest.fixture(scope="module")
def server():
    with running(limits=Limits(body_bytes=20_000, body_s=BODY_S)) as server:
        yield server


@pytest.fixture(scope="module")
def alone():
    """A sampler of the same model, for what each prompt gets alone."""
    model, tokenizer = small_model()
    sampler = Sampler(model, SIZES)

    def ask(ids, **params):
        ids = tokenizer.encode(ids) if isinstance(ids, str) else ids
        params = {"stop_token_ids": (tokenizer.eos_token_id,)} | params
        return sampler.generate([ids], SamplingParams(**params))[0]

    ask.tokenizer = tokenizer
    ask.text = lambda r: tokenizer.decode(r.token_ids, skip_special_tokens=True)
    return ask


# --- answers are the sampler's ---


def test_greedy_answers_are_those_of_generate(server, alone):
    prompts = [f"Start with {i}." for i in range(6)]
    body = {"prompt": prompts, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    status, answer, _ = server.ask(PLAIN, body)
    assert status == 200
    kept = {"temperature": 0.0, "max_tokens": 12, "stop_token_ids": ()}
    expected = [alone.text(alone(prompt, **kept)[0]) for prompt in prompts]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    lengths = sum(len(alone.tokenizer.encode(prompt)) for prompt in prompts)
    assert answer["usage"] == {
        "prompt_tokens": lengths,
        "completion_tokens": 72,
        "total_tokens": lengths + 72,
    }


def test_samples_depend_on_the_seed_alone(server, alone):
    body = {"prompt": "one", "n": 3, "seed": 11, "max_tokens": 9, "top_k": 40, "min_p": 0.001}
    first, second = (server.ask(PLAIN, body)[1]["choices"] for _ in range(2))
    assert first == second
    responses = alone("one", n=3, seed=11, max_tokens=9, top_k=40, min_p=0.001)
    assert [choice["text"] for choice in first] == [alone.text(r) for r in responses]
    assert len({choice["text"] for choice in first}) == 3
    without = [server.ask(PLAIN, body | {"seed": None})[1]["choices"] for _ in range(2)]
    assert without[0] != without[1]


def test_a_chat_has_the_prompt_of_its_template(server, alone):
    _, ids = render_prompt(alone.tokenizer, "What is 3 plus 4?", suffix="")
    body = CHAT | {"max_tokens": 10, "temperature": 0, "logprobs": True}
    answer = server.ask(CHATS, body)[1]
    (response,) = alone(ids, temperature=0.0, max_tokens=10)
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": alone.text(response),
        "refusal": None,
    }
    assert answer["usage"]["prompt_tokens"] == len(ids)
    entries = choice["logprobs"]["content"]
    found = [entry["logprob"] for entry in entries]
    assert found == pytest.approx(response.logprobs, abs=SERVED_LOGPROB)
    assert [e["token"] for e in entries] == [
        alone.tokenizer.decode([i]) for i in response.token_ids
    ]
    data = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert data.decode(errors="replace") == choice["message"]["content"]


@pytest.mark.parametrize("path", [PLAIN, CHATS])
def test_a_stream_is_the_answer_in_pieces(server, path):
    body = CHAT if path == CHATS else {"prompt": "Start with 2."}
    body = body | {"n": 2, "seed": 4, "max_tokens": 30}
    whole = server.ask(path, body)[1]
    chunks = server.stream(path, body | {"stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        text = choice["delta"].get("content", "") if path == CHATS else choice["text"]
        texts[choice["index"]] += text
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    for choice in whole["choices"]:
        text = choice["message"]["content"] if path == CHATS else choice["text"]
        assert texts[choice["index"]] == text
        assert reasons[choice["index"]] == choice["finish_reason"]
    if path == CHATS:
        assert [c["choices"][0]["delta"]["role"] for c in chunks[:2]] == ["assistant"] * 2
    assert len(chunks) > 6
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_a_streams_logprobs_are_the_answers(server):
    body = {"prompt": "x", "seed": 4, "max_tokens": 11, "logprobs": 0}
    (choice,) = server.ask(PLAIN, body)[1]["choices"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in server.stream(PLAIN, body)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [x for part in parts for x in part[name]] == choice["logprobs"][name]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (PLAIN, {"logprobs": 2}),
        (PLAIN, {"logprobs": 2, "echo": True}),
        (PLAIN, {"logprobs": 0, "echo": True}),
        (PLAIN, {"logprobs": 1, "echo": True, "max_tokens": 0}),
        (CHATS, {"logprobs": True, "top_logprobs": 3}),
    ],
)
def test_a_streams_choice_with_scores_is_one_chunk(server, path, more):
    body = CHAT if path == CHATS else {"prompt": "Start with 2."}
    body = body | {"n": 2, "seed": 4, "max_tokens": 8} | more
    body["n"] = 1 if body["max_tokens"] == 0 else 2
    whole = server.ask(path, body)[1]["choices"]
    streamed = [chunk["choices"][0] for chunk in server.stream(path, body)]
    if path == CHATS:
        for choice in whole:
            choice["delta"] = {"content": choice.pop("message")["content"]}
        assert [choice["delta"]["role"] for choice in streamed[:2]] == ["assistant"] * 2
        streamed = streamed[2:]
    assert sorted(streamed, key=lambda choice: choice["index"]) == whole


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_a_stream_with_echo_begins_with_the_prompt(server, max_tokens):
    body = {"prompt": "Start with 2.", "echo": True, "seed": 4, "max_tokens": max_tokens}
    (whole,) = server.ask(PLAIN, body)[1]["choices"]
    first, *others = [chunk["choices"][0] for chunk in server.stream(PLAIN, body)]
    assert (first["text"], first["finish_reason"]) == ("Start with 2.", None)
    assert first["text"] + "".join(choice["text"] for choice in others) == whole["text"]
    assert others[-1]["finish_reason"] == whole["finish_reason"]


def test_messages_keep_their_order(server, alone):
    turns = ("user", "Start with 3."), ("system", "Be short."), ("assistant", "3 4")
    messages = [{"role": role, "content": text} for role, text in turns]
    body = {"messages": messages, "temperature": 0, "max_tokens": 12}
    (choice,) = server.ask(CHATS, body)[1]["choices"]
    prompt = alone.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = alone.tokenizer.encode(prompt, add_special_tokens=False)
    (response,) = alone(ids, temperature=0.0, max_tokens=12)
    assert choice["message"]["content"] == alone.text(response)


def test_stop_strings_are_left_out_and_end_the_response(server):
    body = {"prompt": "Start with 2.", "seed": 3, "max_tokens": 40, "ignore_eos": True}
    text = server.ask(PLAIN, body)[1]["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    before = text[: text.find(stop)]
    body |= {"stop": ["never there", stop]}
    answer = server.ask(PLAIN, body)[1]
    assert answer["choices"][0]["text"] == before
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 40
    chunks = server.stream(PLAIN, body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == before


def test_a_stop_token_ends_a_response_and_is_not_shown(server, alone):
    (free,) = alone("one", seed=11, max_tokens=12, stop_token_ids=())
    ids, end = free.token_ids, free.token_ids[5]
    body = {"prompt": "one", "seed": 11, "max_tokens": 12, "stop_token_ids": [end]}
    answer = server.ask(PLAIN, body | {"ignore_eos": True})[1]
    cut = ids.index(end)
    assert answer["choices"][0]["text"] == alone.tokenizer.decode(ids[:cut])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == cut + 1


def test_logprobs_of_prompt_and_response(server, alone):
    prompt, settings = "Start with 3.", {"temperature": 0.0, "max_tokens": 5}
    body = {"prompt": prompt, "echo": True, "logprobs": 3} | settings
    (choice,) = server.ask(PLAIN, body)[1]["choices"]
    (response,) = alone(prompt, **settings, prompt_logprobs=True)
    assert choice["text"] == prompt + alone.text(response)
    found = choice["logprobs"]
    first, *others = found["token_logprobs"]
    assert first is None
    expected = [*response.prompt_logprobs, *response.logprobs]
    assert others == pytest.approx(expected, abs=SERVED_LOGPROB)
    assert found["top_logprobs"][0] is None
    for own, top in zip(others, found["top_logprobs"][1:], strict=True):
        assert 1 <= len(top) <= 4  # tokens of one text count once; the sequence's own is there
        assert max(top.values()) >= own
    assert "".join(found["tokens"]).startswith(prompt)
    # Greedy tokens are the likeliest, by the very numbers that are sent: clients compare them.
    greedy = found["top_logprobs"][-5:]
    assert [max(top.values()) for top in greedy] == found["token_logprobs"][-5:]
    body |= {"max_tokens": 0}
    (scored,) = server.ask(PLAIN, body)[1]["choices"]
    assert scored["text"] == prompt
    count = len(scored["logprobs"]["tokens"])
    known = found["token_logprobs"][1:count]
    assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(known, abs=SERVED_LOGPROB)
    status, error = error_of(server.ask(PLAIN, body | {"prompt": [5, 999_999_999]}))
    assert status == 400 and "token id 999999999 is outside of" in error["message"]
    # At the temperature that is asked for, as responses are.
    warm = {"temperature": 2.0}
    (scored,) = server.ask(PLAIN, body | warm)[1]["choices"]
    (response,) = alone(prompt, **settings | warm, prompt_logprobs=True)
    assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(
        response.prompt_logprobs, abs=SERVED_LOGPROB
    )


def test_the_sampled_token_is_among_a_completions_likeliest(server):
    body = {"prompt": "one", "logprobs": 1, "max_tokens": 20, "temperature": 3.0, "seed": 1}
    found = server.ask(PLAIN, body | {"echo": True})[1]["choices"][0]["logprobs"]
    rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    for token, own, top in list(rows)[1:]:
        assert top[token] >= own  # of two tokens with one text the likelier


def test_offsets_index_the_text(server, monkeypatch):
    """A tokenizer's own first token, which the text lacks, has no width."""
    plain, other = server.service.vocabulary.token, server.service.tokenizer.encode("x")[0]
    first = server.service.tokenizer.encode("one")[0]
    monkeypatch.setattr(server.service.prompts, "render", lambda wish: [(other, first)])
    body = {"prompt": plain(first), "echo": True, "logprobs": 0, "max_tokens": 1}
    (choice,) = server.ask(PLAIN, body)[1]["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 0, len(plain(first))]


def test_a_mistake_of_ours_is_answered_and_shown(server, monkeypatch, caplog):
    def encode(*_):
        raise TypeError("a mistake")

    monkeypatch.setattr(type(server.service.prompts), "encode", encode)
    status, error = error_of(server.ask(PLAIN, {"prompt": "x", "max_tokens": 1}))
    assert (status, error["message"]) == (500, "an error of the server")
    assert server.service.gauges.requests[PLAIN, 500] == 1
    until_s = time.monotonic() + 20
    while "a mistake" not in caplog.text and time.monotonic() < until_s:
        time.sleep(0.05)  # logged once the answer is out
    assert "a mistake" in caplog.text
    monkeypatch.undo()
    assert server.ask(PLAIN, {"prompt": "x", "max_tokens": 1})[0] == 200


@pytest.mark.parametrize(
    ("spelt", "found"), [("<0xE2>", [226]), ("\u0120a", [32, 97]), ("ü€", None)]
)
def test_bytes_of_a_part_of_a_character(spelt, found):
    class Tokenizer:
        def decode(self, ids, **_):
            return "\ufffd"

        def convert_ids_to_tokens(self, token_id):
            return spelt

    assert Vocabulary(Tokenizer()).bytes_of(0) == found


@pytest.mark.parametrize(
    ("spelt", "decoded", "found"),
    [("\u2581a", "a", " a"), ("\u2581", "", " "), ("a", "a", "a"), ("\u0120a", " a", " a")],
)
def test_a_token_keeps_its_first_space(spelt, decoded, found):
    class Tokenizer:
        def decode(self, ids, **_):
            return decoded

        def convert_ids_to_tokens(self, token_id):
            return spelt

    vocabulary = Vocabulary(Tokenizer())
    assert vocabulary.token(0) == found
    assert bytes(vocabulary.bytes_of(0)).decode() == found


def test_ends_of_lines_are_escaped():
    found = to_json({"a": "x\u2028y\u2029z\x85\n龘"})
    assert found == b'{"a":"x\\u2028y\\u2029z\\u0085\\n' + "龘".encode() + b'"}'
    assert len(found.decode().splitlines()) == 1


def test_a_chats_likeliest_tokens(server):
    body = CHAT | {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    for entry in server.ask(CHATS, body)[1]["choices"][0]["logprobs"]["content"]:
        best, second = entry["top_logprobs"]
        assert (best["token"], best["logprob"]) == (entry["token"], entry["logprob"])
        assert best["logprob"] >= second["logprob"]


# --- refusals ---


def error_of(answer):
    status, body, response = answer
    assert response.headers["content-type"] == "application/json"
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]


def test_refusals_have_the_apis_form(server):
    status, error = error_of(server.ask(PLAIN, {"prompt": "x", "n": 0}))
    assert (status, error["param"]) == (400, "n")
    status, error = error_of(server.ask(PLAIN, {"prompt": "x", "model": "other"}))
    assert (status, error["code"]) == (404, "model_not_found")
    status, error = error_of(server.ask(PLAIN, {"prompt": "x", "max_tokens": 300}))
    assert (status, error["code"]) == (400, "context_length_exceeded")
    status, error = error_of(server.ask(PLAIN, {"prompt": [10**6]}))
    assert status == 400 and "outside of [0," in error["message"]
    status, error = error_of(server.ask(PLAIN, b"{"))
    assert status == 400 and "not valid JSON" in error["message"]
    assert error_of(server.ask(PLAIN, b"[" * 5000))[0] == 400
    assert error_of(server.ask(PLAIN, b'{"prompt": "x", "prompt": "y"}'))[0] == 400
    assert error_of(server.ask(PLAIN, b"{}", headers={"content-type": "text/plain"}))[0] == 415
    answer = server.ask(PLAIN)
    assert error_of(answer)[0] == 405 and answer[2].headers["allow"] == "POST"
    assert error_of(server.ask("/v1/nothing"))[0] == 404
    assert error_of(server.ask(PLAIN, {"prompt": "x", "n": 100}))[0] == 400  # never has the room


def test_a_body_that_is_too_large_is_refused_before_it_has_come(server):
    assert error_of(server.ask(PLAIN, {"prompt": "x" * 30_000}))[0] == 413
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(f"{head}content-length: 9999999999\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:  # of unknown length
        client.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            for _ in range(40):
                client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_body_that_is_too_slow_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        data = b""
        while part := client.recv(4096):
            data += part
    assert data.startswith(b"HTTP/1.1 408") and b'"type":"timeout"' in data


def test_a_page_of_the_web_is_refused(server):
    body = json.dumps({"prompt": "x"}).encode()
    assert error_of(server.ask(PLAIN, body, headers=JSON | {"host": "evil.example"}))[0] == 403
    for host in ("localhost", "127.0.0.1:80", "[::1]:80", "LOCALHOST"):
        assert server.ask("/v1/models", headers={"host": host})[0] == 200
    for host in ("[", "evil/a?b"):  # no part of the path that is logged
        assert error_of(server.ask("/v1/models", headers={"host": host}))[0] == 403
        assert "GET /v1/models 403" in server.lines[-1]


def test_a_full_queue_answers_429_and_the_others_are_served(server, monkeypatch):
    """4 slots and 8 waiting responses: 12 in all."""
    body = {"prompt": "x", "max_tokens": 200, "n": 12, "ignore_eos": True, "seed": 0}
    with _opened(server, PLAIN, body | {"stream": True}) as response:
        response.readline()
        rendered = []
        with monkeypatch.context() as patch:
            patch.setattr(server.service.prompts, "render", lambda wish: rendered.append(wish))
            for path, one in ((PLAIN, {"prompt": "x"}), (CHATS, CHAT)):
                status, error = error_of(server.ask(path, one))
                assert (status, error["code"]) == (429, "queue_full")
            assert error_of(server.ask(PLAIN, {"prompt": "x", "n": 13}))[0] == 400
        assert not rendered  # a full queue costs no encoding
        assert response.read().endswith(b"data: [DONE]\n\n")
    server.idle()
    assert server.ask(PLAIN, {"prompt": "x", "max_tokens": 1})[0] == 200


def test_a_key_is_asked_for_but_by_health():
    with running(key="s3cret") as server:
        for headers in (
            JSON,
            JSON | {"authorization": "Bearer s3creT"},
            {"authorization": "s3cret"},
        ):
            assert error_of(server.ask("/v1/models", headers=headers))[0] == 401
        assert server.ask("/metrics")[0] == 401
        assert server.ask("/health")[0] == 200
        good = {"authorization": "Bearer s3cret", "host": "anywhere"}
        assert server.ask("/v1/models", headers=good)[0] == 200


# --- clients that leave ---


@contextlib.contextmanager
def _opened(server, path, body):
    client = http.client.HTTPConnection("127.0.0.1", server.port, 120)
    try:
        client.request("POST", path, json.dumps(body), JSON)
        yield client.getresponse()
    finally:
        client.close()


LONG = {"prompt": "Start with 1.", "max_tokens": 230, "ignore_eos": True, "seed": 1}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_request(server, stream):
    server.idle()
    left = server.service.gauges.left
    before = server.idle()["response_tokens"]
    if stream:
        with _opened(server, PLAIN, LONG | {"stream": True}) as response:
            assert response.readline().startswith(b"data: ")
    else:
        client = http.client.HTTPConnection("127.0.0.1", server.port, 120)
        client.request("POST", PLAIN, json.dumps(LONG), JSON)
        server.until(lambda: server.service.worker.unfinished == 1)
        client.close()
    stats = server.idle()
    server.until(lambda: server.service.gauges.left == left + 1)
    assert stats["pages_used"] == 0
    assert stats["response_tokens"] - before < 230


def test_the_others_answer_does_not_change_when_one_leaves(server, alone):
    body = {"prompt": "one", "seed": 11, "max_tokens": 60, "ignore_eos": True}
    with _opened(server, PLAIN, LONG | {"stream": True}) as response:
        response.readline()
        with _opened(server, PLAIN, body) as stays:
            response.close()
            answer = json.loads(stays.read())
    (expected,) = alone("one", seed=11, max_tokens=60, stop_token_ids=())
    assert answer["choices"][0]["text"] == alone.text(expected)


# --- weights, numbers, failures ---


def test_new_weights_reach_live_requests_and_none_is_lost(tmp_path):
    other, tokenizer = small_model(1)
    save_pretrained(other, tmp_path / "new", tokenizer=tokenizer)
    with running(allow_update=True) as server:
        with _opened(server, PLAIN, LONG | {"stream": True, "logprobs": 0}) as response:
            response.readline()
            status, card, _ = server.ask("/v1/weights", {"path": str(tmp_path / "new")})
            assert (status, card["weights_version"]) == (200, 1)
            events = response.read().decode().split("\n\n")
        assert events[-2] == "data: [DONE]"
        chunks = [json.loads(e.strip().removeprefix("data: ")) for e in events[:-2] if e.strip()]
        tokens = [t for c in chunks for t in c["choices"][0]["logprobs"]["tokens"]]
        assert len(tokens) > 200 - 4
        greedy = {"prompt": "Start with 3.", "max_tokens": 8, "temperature": 0}
        answer = server.ask(PLAIN, greedy)[1]
        assert answer["system_fingerprint"] == "weights-1"
        ids = [tokenizer.encode("Start with 3.")]
        params = SamplingParams(temperature=0.0, max_tokens=8)
        (expected,) = Sampler(other, SIZES).generate(ids, params)[0]
        assert answer["choices"][0]["text"] == tokenizer.decode(expected.token_ids)
        status, error = error_of(server.ask("/v1/weights", {"path": str(tmp_path / "none")}))
        assert status == 400 and "none" in error["message"]
        assert error_of(server.ask("/v1/weights", {"path": 3}))[0] == 400
        assert server.ask("/health")[0] == 200
        assert server.ask(PLAIN, greedy)[1]["choices"] == answer["choices"]


def test_without_weights_a_new_request_is_asked_to_come_again(server, monkeypatch):
    monkeypatch.setattr(server.service.updates, "has_weights", False)
    answer = server.ask(PLAIN, {"prompt": "x"})
    assert error_of(answer)[0] == 503 and answer[2].headers["retry-after"] == "1"
    assert server.ask("/health")[0] == 503


def test_a_server_that_no_longer_follows_its_run_is_not_healthy(server, monkeypatch):
    monkeypatch.setattr(server.service.updates, "alive", False)
    assert server.ask("/health")[0] == 503
    assert server.ask(PLAIN, {"prompt": "x", "max_tokens": 1})[0] == 200


def test_weights_change_only_if_the_server_was_started_so(server):
    assert error_of(server.ask("/v1/weights", {"path": "x"}))[0] == 403


def test_models_health_and_metrics(server):
    _, answer, _ = server.ask("/v1/models")
    assert [card["id"] for card in answer["data"]] == ["small"]
    assert server.ask("/v1/models/small")[1] == answer["data"][0]
    assert error_of(server.ask("/v1/models/none"))[0] == 404
    assert server.ask("/health")[1] == {"status": "ok"}
    server.idle()
    _, text, response = server.ask("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 15
    line = re.compile(r'(# (HELP|TYPE) .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [\d.e+-]+)')
    assert [x for x in text.splitlines() if not line.fullmatch(x)] == []
    assert "polaris_pages_used 0\n" in text and "polaris_responses_live 0\n" in text


def test_the_log_has_no_text_and_no_control_character(server):
    server.ask(PLAIN, {"prompt": "a secret", "max_tokens": 1})
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(b"GET /v1/models/%1b%5b2Jx HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"404" in client.recv(4096)
    log = "\n".join(server.lines)
    assert "secret" not in log and "\x1b" not in log
    assert r"GET /v1/models/\x1b[2Jx 404" in log


def test_a_device_error_fails_its_requests_and_not_the_server(server, monkeypatch):
    server.idle()
    step, calls = Sampler.step, []

    def fails_once(sampler):
        if sampler is server.sampler and sampler.stats()["live_rows"] == [1] and not calls:
            calls.append(1)
            sampler._live.restart()
            raise RuntimeError("out of memory")
        return step(sampler)

    monkeypatch.setattr(Sampler, "step", fails_once)
    status, error = error_of(server.ask(PLAIN, LONG))
    assert (status, error["type"]) == (500, "server_error")
    assert server.ask(PLAIN, {"prompt": "x", "max_tokens": 2})[0] == 200
    assert server.service.worker.failures == 1
    assert server.idle()["pages_used"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_does_not_end_in_time_gets_an_error(stream):
    gate = threading.Event()
    with running() as server, _opened(server, PLAIN, LONG | {"stream": True}) as other:
        other.readline()
        held = server.service.worker.call(lambda _: gate.wait(60))
        if stream:
            server.stop()
            text = other.read()
        else:
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(server.ask, PLAIN, LONG)
                server.until(lambda: server.service.worker.unfinished == 2)
                server.stop()
                status, error = error_of(asked.result(60))
                assert status == 503
                text = error["message"].encode()
        gate.set()
        held.result(60)
    assert b"the server is stopping" in text and b"[DONE]" not in text


def test_a_client_that_reads_nothing_is_dropped():
    """Asked without a socket, whose buffers would hold a short stream."""
    with running(limits=Limits(write_s=0.3)) as server:
        body, sent = [json.dumps(LONG | {"stream": True}).encode()], []

        async def receive():
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await asyncio.Event().wait()

        async def send(message):
            sent.append(message["type"])
            if len(sent) > 2:
                await asyncio.Event().wait()

        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": PLAIN, "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http"}
        work = server.app(scope, receive, send)
        asyncio.run_coroutine_threadsafe(work, server.service.inboxes.loop).result(60)
        assert sent[:3] == ["http.response.start", "http.response.body", "http.response.body"]
        stats = server.idle()
        assert stats["pages_used"] == 0  # aborted, or at its end in the time that a write has
        assert server.service.gauges.requests[PLAIN, 499] == 1


def test_a_client_that_reads_slowly_gets_a_large_chunk_whole(monkeypatch):
    """Its time is for each part: one chunk may have megabytes."""
    asked = {"prompt": "x", "max_tokens": 220, "logprobs": 20, "ignore_eos": True, "stream": True}
    sent, part = [], 1 << 14
    monkeypatch.setattr("polaris_jax.serve.running.WRITE_BYTES", part)
    with running(limits=Limits(write_s=1.5)) as server:
        body = [json.dumps(asked).encode()]

        async def receive():
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await asyncio.Event().wait()

        async def send(message):
            sent.append(message.get("body", b""))
            await asyncio.sleep(0.5 * len(sent[-1]) / part)

        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": PLAIN, "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http"}
        work = server.app(scope, receive, send)
        asyncio.run_coroutine_threadsafe(work, server.service.inboxes.loop).result(60)
        assert server.service.gauges.requests[PLAIN, 200] == 1
    whole = b"".join(sent)
    assert len(whole) > 4 * part  # longer than the time of one write
    assert whole.endswith(b"data: [DONE]\n\n")


def test_a_connection_that_begins_no_second_request_is_closed(server, monkeypatch):
    monkeypatch.setattr("polaris_jax.serve.server.HEADER_S", 1.0)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, 30)) as client:
        client.request("GET", "/health")
        assert client.getresponse().read() == b'{"status":"ok"}'
        client.sock.sendall(b"G")
        assert client.sock.recv(1) == b""


def test_a_body_that_nobody_reads_ends(server, monkeypatch):
    """uvicorn discards what comes behind an early answer, without an end."""
    monkeypatch.setattr("polaris_jax.serve.server.HEADER_S", 1.0)
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999999\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 415")
        assert _is_cut_off(client, b"x", times=200, pause_s=0.05)


def test_a_client_that_reads_no_answer_is_cut_off():
    asked = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100
    with (
        running(limits=Limits(write_s=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.port), 60) as client,
    ):
        # Megabytes of answers, more than the system's buffers hold.
        assert _is_cut_off(client, asked, times=10_000)


def _is_cut_off(client, data, *, times, pause_s=0.0):
    try:
        for _ in range(times):
            client.sendall(data)
            time.sleep(pause_s)
    except OSError:
        return True
    return False


def test_a_key_is_one_that_a_header_can_hold(monkeypatch):
    monkeypatch.setenv("POLARIS_API_KEY", "abc\n")
    assert serve_command._key("", "") == "abc"
    for key in ("schl\u00fcssel", "a\tb"):
        with pytest.raises(ConfigError, match="printable characters of ASCII"):
            serve_command._key(key, "")
