"""`generate --input`: every row gets what it would get alone; a rerun continues."""

import dataclasses
import json
from array import array
from types import SimpleNamespace

import numpy as np
import pytest

from polaris_jax.__main__ import main
from polaris_jax.data.prompts import render_prompt
from polaris_jax.measure import completions
from polaris_jax.models import load_with_tokenizer
from polaris_jax.models.tokenizer import stop_token_ids
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.system.progress import Progress
from tests.support.stranger import random_qwen3

pytestmark = pytest.mark.xdist_group("generate_file")
ROWS = [
    {"prompt": "What is 3 plus 4?", "id": "a"},
    {
        "messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "5 and 6"}],
        "seed": None,  # as a table writes a column that another row fills
    },
    {"prompt": [{"role": "user", "content": "one"}], "seed": 9, "text": "my own"},
    *({"prompt": f"Start with {i}."} for i in range(9)),
]
WORDS = ["--n=2", "--temperature=1", "--max_tokens=6", "--seed=5", "--suffix="]

SETTINGS = completions.Settings(2, 1.0, 1.0, 0, 0.0, 6, 5, "", False, "float32", (1.0, 0))


def sampler_of_the_command(model, tokenizer):
    """Its programs are compiled already."""
    ids = [completions._prompt(row, SETTINGS, tokenizer, "") for row in ROWS]
    rows = [completions._Row(n, {}, 0, array("i", i)) for n, i in enumerate(ids)]
    return completions._sampler(rows, SETTINGS, model)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return random_qwen3(tmp_path_factory.mktemp("file") / "model")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def words(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(completions, "SLOTS", 4)
    source = write(tmp_path / "in.jsonl", ROWS)
    return [
        "generate",
        f"--model={model_dir}",
        f"--input={source}",
        f"--out={tmp_path / 'out.jsonl'}",
        *WORDS,
    ]


def test_each_row_gets_what_the_sampler_gives_it_alone(words, model_dir, tmp_path, capsys):
    assert main(words) == 0
    assert "12 rows" in capsys.readouterr().out
    found = read(tmp_path / "out.jsonl")
    assert [(row["row"], row["sample"]) for row in found] == [
        (r, s) for r in range(1, 13) for s in (0, 1)
    ]
    model, tokenizer = load_with_tokenizer(str(model_dir), dtype="float32")
    _, prompt = render_prompt(tokenizer, "What is 3 plus 4?", suffix="")
    params = SamplingParams(
        n=2, max_tokens=6, seed=5, stop_token_ids=stop_token_ids(tokenizer, model.config.end_ids)
    )
    (responses,) = sampler_of_the_command(model, tokenizer).generate([prompt], params)
    texts = [tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in responses]
    assert [row["text"] for row in found[:2]] == texts
    assert found[0]["id"] == "a" and found[0]["tokens"] == len(responses[0].token_ids)
    assert found[4]["input_text"] == "my own" and found[4]["seed"] == 9
    assert found[0]["seed"] == 5 == found[2]["seed"]


def test_what_lies_beyond_the_models_positions_is_told_of(words, capsys):
    assert main(words) == 0
    assert "warning" not in capsys.readouterr().out
    command, model, *_ = words
    assert main([command, model, "--prompt=hi", "--max_tokens=600", "--temperature=0"]) == 0
    assert "tokens, and the model has 512 positions" in capsys.readouterr().err


def test_a_rerun_after_a_kill_ends_with_the_same_bytes(words, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.jsonl"
    assert main(words) == 0
    complete = out.read_bytes()
    lines = complete.splitlines(keepends=True)
    # What a kill leaves after five rows: a row's first line, and half of its second.
    out.write_bytes(b"".join(lines[:11]) + lines[11][:20])
    identity = tmp_path / "out.identity.json"
    kept = json.loads(identity.read_text())
    kept["rows"] = {"count": 0, "crc32": 0}
    identity.write_text(json.dumps(kept))
    submitted = []
    submit = Sampler.submit
    monkeypatch.setattr(
        Sampler, "submit", lambda self, *a, **k: submitted.append(a) or submit(self, *a, **k)
    )
    assert main(words) == 0
    assert out.read_bytes() == complete
    assert len(submitted) == len(ROWS) - 5
    assert "resumed after 5 of 12 rows" in capsys.readouterr().out
    assert main(words) == 0
    assert len(submitted) == len(ROWS) - 5


def test_other_prompts_under_the_same_name_are_refused(words, tmp_path, capsys):
    assert main(words) == 0
    write(tmp_path / "in.jsonl", ROWS[:-1])
    assert main(words) == 2
    assert "another prompts than the rows of" in capsys.readouterr().err
    assert main([*words, "--top_p=0"]) == 2  # and the lines that are there stay
    assert "top_p=0.0: must be in (0, 1]" in capsys.readouterr().err
    assert len(read(tmp_path / "out.jsonl")) == 2 * len(ROWS)
    assert main([*words, "--seed=6"]) == 0  # other settings: another file's worth
    assert len(list(tmp_path.glob("out.settings-*.jsonl"))) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"}', "line 2: needs either a prompt or messages"),
        ('{"prompt": ""}', "line 2: prompt: must be a text, and not empty"),
        ('{"prompt": 3}', "line 2: prompt: must be a text"),
        ('{"prompt": "x", "messages": []}', "line 2: needs either"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content: must be a text"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "messages[0].role: must be one of"),
        ('{"prompt": "x", "seed": "y"}', "line 2: seed must be a whole number"),
        ("{", "line 2: not valid JSON"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_sampled(words, tmp_path, capsys, line, said):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n' + line + "\n")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_chat_that_ends_in_another_role_has_no_place_for_the_suffix(words, tmp_path, capsys):
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    write(tmp_path / "in.jsonl", [{"messages": chat}])
    assert main([*words, "--suffix= Now."]) == 2
    assert (
        "messages[1].role=assistant: --suffix goes to the last message" in capsys.readouterr().err
    )
    assert main(words) == 0
    assert len(read(tmp_path / "out.jsonl")) == 2


def test_a_damaged_input_leaves_the_rows_of_other_settings_where_they_are(words, tmp_path, capsys):
    assert main(words) == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.glob("out.*jsonl"))
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("{\n")
    assert main([*words, "--seed=7"]) == 2
    assert "line 13: not valid JSON" in capsys.readouterr().err
    after = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.glob("out.*jsonl"))
    assert after == before


def test_raw_prompts_are_encoded_as_they_are(model_dir):
    _, tokenizer = load_with_tokenizer(str(model_dir), dtype="float32")
    settings = completions.Settings(
        1, 0.0, 1.0, 0, 0.0, 4, 0, " Answer.", True, "float32", (1.0, 0)
    )
    text = "<|im_start|>user\nhi<|im_end|> "
    ids = completions._prompt({"prompt": text}, settings, tokenizer, "here")
    np.testing.assert_array_equal(ids, tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("held", [2, 5, 64])
def test_one_long_row_does_not_keep_the_others_waiting(monkeypatch, tmp_path, held):
    """Later rows are sampled while it runs. They are written after it, so `HELD` limits them."""
    monkeypatch.setattr(completions, "HELD", held)
    slots, total, at_most = 2, 100, 0
    requests: list[SimpleNamespace] = []

    def step():
        nonlocal at_most
        live = [request for request in requests if not request.done]
        at_most = max(at_most, len(live))
        behind = [request for request in live[:slots] if request is not requests[0]]
        for request in behind or live:
            request.done, request.num_done = True, 1

    def submit(prompts, params):
        response = SimpleNamespace(token_ids=(1,), finish_reason="length")
        request = SimpleNamespace(done=False, num_done=0, responses=lambda: ((response,),))
        requests.append(request)
        return request

    config = SimpleNamespace(slots=slots)
    sampler = SimpleNamespace(config=config, submit=submit, step=step, poll=lambda _: None)
    submitted, written = [], []

    def append(lines):
        written.extend(line["row"] for line in lines)
        submitted.append(len(requests))

    rows = [completions._Row(n, {}, 0, array("i", [1])) for n in range(total)]
    one = dataclasses.replace(SETTINGS, n=1)
    tokenizer = SimpleNamespace(decode=lambda *_, **__: "")
    done = SimpleNamespace(append=append)
    completions._sample(rows, total, done, one, sampler, tokenizer, [], Progress(enabled=False))
    assert written == list(range(total))
    assert submitted[0] == min(total, held * slots)
    assert at_most <= completions.AHEAD * slots
