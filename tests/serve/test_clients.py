"""`polaris serve` as its users meet it: the command, curl, the openai package, lm-eval, signals.

lm-eval is looked for as a module or as the program that `$LM_EVAL` names, since it brings packages
that this project's own tests must not depend on.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from polaris_jax.models import load_with_tokenizer
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.scores import score
from tests.support.micro_run import free_port
from tests.support.stranger import random_qwen3
from tests.tolerances import SERVED_LOGPROB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("serve_clients")]
ROOT = Path(__file__).resolve().parents[2]
KEY = "s3cret"
FLAGS = ["--name=small", "--slots=4", "--max_len=256", "--max_waiting=8", "--grace_s=20"]
TASK = """\
task: tiny_arithmetic
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
CHOICES = """doc_to_choice: ["x", "y"]
target_delimiter: ""
metric_list: [{metric: acc}]"""
UNTIL = """generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]"""


@contextlib.contextmanager
def command(folder, model, *flags, key=KEY):
    """(process, address) of a server in a process of its own."""
    port, log = free_port(), folder / "serve.log"
    environment = {**os.environ, "XLA_FLAGS": "", "POLARIS_API_KEY": key}
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "polaris_jax", "serve", f"--model={model}"),
                *(f"--port={port}", *FLAGS, *flags),
            ],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health"):
                break
            time.sleep(0.5)
        yield process, address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return random_qwen3(tmp_path_factory.mktemp("clients") / "model", positions=256)


@pytest.fixture(scope="module")
def address(model_dir):
    with command(model_dir.parent, model_dir) as (_, address):
        yield address


def greedy(model_dir, prompts, max_tokens):
    model, tokenizer = load_with_tokenizer(str(model_dir), dtype="float32")
    sampler = Sampler(model, SamplerConfig(slots=4, max_len=256, num_pages=65))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    groups = sampler.generate(ids, params)
    return [tokenizer.decode(g[0].token_ids, skip_special_tokens=True) for g in groups]


def test_the_openai_package(address, model_dir):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=300)
    assert [model.id for model in client.models.list()] == ["small"]

    prompts = [f"Start with {i}." for i in range(5)]
    settings = {"model": "small", "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(prompt=prompts, **settings)
    assert [choice.text for choice in answer.choices] == greedy(model_dir, prompts, 12)
    assert answer.usage.completion_tokens <= 60

    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "3 and 4"}]
    settings = {"model": "small", "messages": messages, "max_tokens": 20, "seed": 7}
    whole = client.chat.completions.create(n=2, logprobs=True, top_logprobs=3, **settings)
    assert len(whole.choices) == 2 and whole.choices[0].message.role == "assistant"
    for choice in whole.choices:
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 3
    pieces = {0: "", 1: ""}
    options = {"include_usage": True}
    stream = client.chat.completions.create(n=2, stream=True, stream_options=options, **settings)
    for chunk in stream:
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert pieces == {c.index: c.message.content for c in whole.choices}
    assert usage == whole.usage
    scores = []
    scored = client.chat.completions.create(
        n=2, logprobs=True, top_logprobs=3, stream=True, **settings
    )
    for chunk in scored:
        scores += [(c.index, c.logprobs.content) for c in chunk.choices if c.logprobs]
    assert sorted(scores) == [(c.index, c.logprobs.content) for c in whole.choices]

    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="no", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="other", prompt="x")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="small", prompt="x", max_tokens=500)
    assert error.value.code == "context_length_exceeded"
    body = {"ignore_eos": True}
    long = client.completions.create(
        model="small", prompt="x", n=12, max_tokens=240, stream=True, extra_body=body
    )
    next(iter(long))
    with pytest.raises(openai.RateLimitError) as error:
        client.completions.create(model="small", prompt="x")
    assert error.value.code == "queue_full"
    long.close()


def test_curl(address):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(*words):
        key = f"authorization: Bearer {KEY}"
        line = ["curl", "-sS", "-N", "-H", key, "-H", "content-type: application/json", *words]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=300).stdout

    body = {"prompt": "1 + 1 =", "max_tokens": 5, "seed": 1}
    (choice,) = json.loads(curl(f"{address}/v1/completions", "-d", json.dumps(body)))["choices"]
    text = curl(f"{address}/v1/completions", "-d", json.dumps(body | {"stream": True}))
    *events, last, _ = text.split("\n\n")
    assert last == "data: [DONE]"
    parts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(parts) == choice["text"]
    assert "polaris_pages_used" in curl(f"{address}/metrics")


def _lm_eval():
    if program := os.environ.get("LM_EVAL"):
        return [program]
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed, and $LM_EVAL names no program of it")
    return [sys.executable, "-m", "lm_eval"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        pytest.param("multiple_choice", CHOICES, id="log-probs of prompts"),
        pytest.param("generate_until", UNTIL, id="texts"),
    ],
)
def test_lm_eval(address, model_dir, tmp_path, kind, more):
    # Characters that this tokenizer merges with no other: lm-eval cuts between tokens.
    rows = [{"question": f"q{i}?", "answer": "y"} for i in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.format(rows=data, kind=kind, more=more))
    arguments = {
        "model": "small",
        "base_url": f"{address}/v1/completions",
        "tokenizer": str(model_dir),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 3,
        "max_length": 256,
    }
    ran = subprocess.run(
        [
            *(*_lm_eval(), "--model=local-completions", "--tasks=tiny_arithmetic"),
            f"--model_args={','.join(f'{k}={v}' for k, v in arguments.items())}",
            *(f"--include_path={tmp_path}", f"--output_path={tmp_path / 'out'}", "--log_samples"),
        ],
        env={**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1"} | {"PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == len(rows)
    if kind == "generate_until":
        texts = greedy(model_dir, [row["question"] for row in rows], 8)
        by_id = {row["doc_id"]: row["resps"][0][0] for row in found}
        assert [by_id[i] for i in range(6)] == [text.split(".")[0] for text in texts]
    else:
        model, tokenizer = load_with_tokenizer(str(model_dir), dtype="float32")
        for row in found:
            for choice, ((logprob, _),) in zip("xy", row["resps"], strict=True):
                ids = tokenizer.encode(row["doc"]["question"] + choice)
                (expected,) = score(model, [ids], [1.0], top=1)
                assert float(logprob) == pytest.approx(expected.logprobs[-1], abs=SERVED_LOGPROB)


def test_a_signal_lets_requests_end(tmp_path, model_dir):
    with command(tmp_path, model_dir, key="") as (process, address):
        body = json.dumps({"prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True})
        request = urllib.request.Request(
            f"{address}/v1/completions", body.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            response.readline()
            process.send_signal(signal.SIGTERM)
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(120) == 0
    assert (tmp_path / "serve.log").read_text().endswith("stopped\n")


def test_a_runs_checkpoints_are_followed(tmp_path, model_dir):
    """A checkpoint that is torn is passed over; a complete one is served."""
    from polaris_jax.checkpoint import Checkpointer
    from tests.support.random_models import random_model

    model, _ = load_with_tokenizer(str(model_dir), dtype="float32")
    run = tmp_path / "run"
    run.mkdir()
    checkpoints = run / "checkpoints"
    checkpointer = Checkpointer(checkpoints, architecture=model.config.architecture(), keep_last=9)
    with command(tmp_path, model_dir, f"--follow={run}", "--follow_s=0.2", key="") as (_, address):

        def weights():
            with urllib.request.urlopen(f"{address}/v1/models") as answer:
                return json.load(answer)["data"][0]["weights_version"]

        assert weights() == 0
        (checkpoints / "3").mkdir(parents=True)
        other = random_model(model.config, 5)
        checkpointer.save(2, {"params": other.params()}, {})
        for _ in range(600):
            if weights() == 1:
                break
            time.sleep(0.2)
        assert weights() == 1
        log = (tmp_path / "serve.log").read_text()
        assert f"weights 1: {checkpoints / '2'}" in log
    # A server that begins later never answers with the model that gives the architecture.
    with command(tmp_path, model_dir, f"--follow={run}", key="") as (_, address):
        body = {"prompt": "x", "max_tokens": 8, "temperature": 0, "logprobs": 0}
        request = urllib.request.Request(
            f"{address}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            found = json.load(answer)["choices"][0]["logprobs"]["token_logprobs"]
        log = (tmp_path / "serve.log").read_text()
        assert f"weights 0: {checkpoints / '2'}" in log
        assert "weights 1" not in log
    tokenizer = load_with_tokenizer(str(model_dir), dtype="float32")[1]
    sizes = SamplerConfig(slots=1, page_size=16, num_pages=64, max_len=64)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    ((expected,),) = Sampler(other, sizes).generate([tokenizer.encode("x")], greedy)
    np.testing.assert_allclose(found, expected.logprobs, atol=SERVED_LOGPROB)
