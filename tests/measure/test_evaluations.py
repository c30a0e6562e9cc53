"""Whole evaluations on a small model: several checkpoints, later budgets, kills, forced answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polaris_jax.__main__ import main
from polaris_jax.config import EvaluateSection
from polaris_jax.data.prompts import render_prompt
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.evaluate.scoring import score_rows
from polaris_jax.measure import respond
from polaris_jax.measure.policy import Policy
from polaris_jax.models import load_pretrained, token_logprobs
from polaris_jax.reward import score_response
from tests.support.micro_run import SUFFIX, flags, make_base

# One worker makes the base; each test is a run of seconds on an idle machine.
pytestmark = [pytest.mark.xdist_group("evaluations"), pytest.mark.slow]

BUDGET, EDGE = 16, 8
FIELDS = {
    "mesh.fsdp": 8,
    "batch.rows": 8,
    "evaluate.n": 4,
    "evaluate.temperature": 1.0,
    "evaluate.length_edges": f"({EDGE},)",
    "evaluate.budgets": f"(6,{BUDGET})",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model of the same shape."""
    return make_base(tmp_path_factory.mktemp("other"), trained=False)[0]


def run(base, workdir: Path, *words: str, **fields: Any) -> int:
    named = {"evaluate.problems": base[1], **FIELDS, **fields}
    more = [f"--config.{name}={value}" for name, value in named.items()]
    return main(["evaluate", *flags(*base, *more), f"--workdir={workdir}", *words])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(base, other, tmp_path_factory):
    """Base model and another, with YaRN and without, in one call."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    words = (f"--checkpoint=base,{other}", "--tag=before,after")
    assert run(base, workdir, *words, **{"evaluate.yarn": "both"}) == 0
    return workdir


def test_grading_the_responses_again_gives_eval_json_exactly(evaluated):
    """By the texts and token ids of responses.jsonl alone."""
    tokenizer = build_tokenizer()
    kept = read(evaluated / "before_eval.json")
    rows = []
    for row in rows_of(evaluated / "before_responses.jsonl"):
        ids = [int(i) for i in row["token_ids"].split()]
        assert len(ids) == row["tokens"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["text"]
        again = {name: value for name, value in row.items() if not name.startswith("reward_at")}
        again["reward"] = score_response(row["text"], row["gold"], mode="eval")
        if len(ids) > 6:
            text = tokenizer.decode(ids[:6], skip_special_tokens=True)
            again["reward_at_6"] = score_response(text, row["gold"], mode="eval")
        rows.append(again)
    section = EvaluateSection(
        n=4, temperature=1.0, length_edges=(EDGE,), budgets=(6, BUDGET), max_response_tokens=BUDGET
    )
    again = score_rows(rows, section, correct_at=1.0, max_response_tokens=BUDGET)
    again = json.loads(json.dumps(again))
    for point, stored in zip(again["budget_curve"], kept["budget_curve"], strict=True):
        point["accuracy_yarn"] = stored["accuracy_yarn"]  # of the other responses
    assert again == {name: kept[name] for name in again}
    assert 0 < kept["avg@k"] < 1


def test_several_checkpoints_are_those_of_single_calls(evaluated, base, other, tmp_path):
    assert run(base, tmp_path, f"--checkpoint={other}", **{"evaluate.yarn": "both"}) == 0
    for name in ("responses.jsonl", "responses_yarn.jsonl", "eval.json"):
        assert (tmp_path / name).read_bytes() == (evaluated / f"after_{name}").read_bytes()


def test_they_are_compared_problem_by_problem(evaluated):
    found = read(evaluated / "eval_compared.json")
    names = [one["name"] for one in found["evaluations"]]
    assert names == ["before", "before, YaRN", "after", "after, YaRN"]
    means = {}
    for name, file in zip(names, ("before_responses", "before_responses_yarn"), strict=False):
        rewards = [row["reward"] for row in rows_of(evaluated / f"{file}.jsonl")]
        means[name] = np.mean(rewards)
    first = found["differences"][0]
    assert (first["first"], first["second"]) == ("before", "before, YaRN")
    expected = means["before, YaRN"] - means["before"]
    assert first["avg@k"]["value"] == pytest.approx(expected, abs=1e-9)
    assert "| after minus before |" in (evaluated / "eval_compared.md").read_text()
    assert (evaluated / "eval_compared.png").stat().st_size > 1000


def test_stored_evaluations_compare_without_sampling(evaluated, tmp_path, capsys):
    before, after = evaluated / "before_eval.json", evaluated / "after_responses_yarn.jsonl"
    words = ["evaluate", "--compare", str(before), str(after), f"--out={tmp_path}"]
    assert main([*words, "--names=a,b"]) == 0
    found = read(tmp_path / "eval_compared.json")
    assert [one["name"] for one in found["evaluations"]] == ["a", "a, YaRN", "b, YaRN"]
    assert main(["evaluate", "--compare", str(evaluated)]) == 2
    assert "has no eval.json (it has after_eval.json, before_eval.json: name one)" in (
        capsys.readouterr().err
    )


def test_a_later_budget_gives_what_sampling_under_it_gives(base, tmp_path, monkeypatch):
    assert run(base, tmp_path / "later") == 0
    with monkeypatch.context() as patched:
        patched.setattr(Policy, "solve", lambda *_, **__: pytest.fail("it sampled again"))
        assert run(base, tmp_path / "later", **{"evaluate.budgets": f"(6,10,{BUDGET})"}) == 0
    curve = {p["budget"]: p for p in read(tmp_path / "later" / "eval.json")["budget_curve"]}
    fields = {"evaluate.max_response_tokens": 10, "evaluate.budgets": "(10,)"}
    assert run(base, tmp_path / "under", **fields) == 0
    under = read(tmp_path / "under" / "eval.json")
    assert curve[10]["accuracy"] == under["avg@k"]
    assert curve[10]["stderr"] == under["stderr"]
    assert curve[10]["cut_share"] == under["truncated_share"]
    assert curve[10]["cut_share"] > 0


def test_a_killed_call_continues_to_the_same_files(evaluated, base, other, tmp_path, monkeypatch):
    """In the second checkpoint, after its first batch."""
    monkeypatch.setattr(respond, "BATCH_PROMPTS", 6)
    solve, calls = Policy.solve, []

    def noted(self, problems, **options):
        calls.append(len(problems))
        if len(calls) == 6:
            raise RuntimeError("killed in its middle")
        return solve(self, problems, **options)

    monkeypatch.setattr(Policy, "solve", noted)
    words = (f"--checkpoint=base,{other}", "--tag=before,after")
    assert run(base, tmp_path, *words, **{"evaluate.yarn": "both"}) == 1
    assert not (tmp_path / "after_eval.json").exists()
    assert run(base, tmp_path, *words, **{"evaluate.yarn": "both"}) == 0
    assert len(calls) == 9  # two batches of each of four, and the one that was cut off
    for path in (*evaluated.glob("*.jsonl"), *evaluated.glob("*eval*.json")):
        if path.name != "eval_compared.json":  # names its sources by path
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_forced_answers_stand_beside_the_responses(base, tmp_path, monkeypatch):
    fields = {"evaluate.max_response_tokens": 6, "evaluate.budgets": "(6,)"}
    assert run(base, tmp_path, **fields) == 0
    plain = read(tmp_path / "eval.json")
    kept = (tmp_path / "responses.jsonl").read_bytes()
    forcing = fields | {"evaluate.force_answer_tokens": 4, "evaluate.force_answer_text": r"\boxed{"}
    assert run(base, tmp_path, **forcing) == 0
    found = read(tmp_path / "eval.json")
    assert (tmp_path / "responses.jsonl").read_bytes() == kept
    assert {name: found[name] for name in plain} == plain
    assert found["forced"]["share"] == plain["truncated_share"] > 0
    rows, forced = rows_of(tmp_path / "responses.jsonl"), rows_of(tmp_path / "forced.jsonl")
    assert len(rows) == len(forced)
    for row, other in zip(rows, forced, strict=True):
        assert other["forced"] == (row["finish_reason"] == "length")
        if not other["forced"]:
            assert other["reward"] == row["reward"]
        else:
            assert other["reward"] == score_response(
                row["text"] + other["text"], row["gold"], mode="eval"
            )
            assert other["text"].startswith("\n</think>") or "</think>" in row["text"]
    rewards = [row["reward"] for row in forced]
    assert found["forced"]["avg@k"] == pytest.approx(np.mean(rewards), abs=1e-9)
    with monkeypatch.context() as patched:
        patched.setattr(Policy, "continued", lambda *_, **__: pytest.fail("it sampled again"))
        assert run(base, tmp_path, **forcing) == 0


def test_attention_factors_are_evaluated_on_the_same_problems(base, tmp_path):
    fields = {"evaluate.yarn": "on", "evaluate.attention_factors": "(1.0405,)"}
    assert run(base, tmp_path, **fields) == 0
    found = read(tmp_path / "eval_compared.json")
    names = [one["name"] for one in found["evaluations"]]
    assert names == ["base, YaRN", "base, YaRN, attention 1.0405"]
    first, second = (
        rows_of(tmp_path / f"responses_yarn{suffix}.jsonl") for suffix in ("", "_1.0405")
    )
    assert [row["problem_id"] for row in first] == [row["problem_id"] for row in second]
    assert [row["text"] for row in first] != [row["text"] for row in second]


def test_positions_hold_the_log_probs_of_the_longest_responses(base, tmp_path):
    assert run(base, tmp_path, **{"evaluate.n": 2}) == 0
    line = flags(*base, f"--config.evaluate.problems={base[1]}")
    assert main(["positions", *line, f"--workdir={tmp_path}", "--responses=5"]) == 0
    found = read(tmp_path / "positions.json")
    names = [curve["name"] for curve in found["curves"]]
    assert names == ["without YaRN", "YaRN x 1.5, attention 1"]
    rows = sorted(rows_of(tmp_path / "responses.jsonl"), key=lambda row: -row["tokens"])[:5]
    model, tokenizer = load_pretrained(base[0])
    by_position: dict[int, list[float]] = {}
    for row in rows:
        _, prompt = render_prompt(tokenizer, row["question"], suffix=SUFFIX)
        ids = [*prompt, *map(int, row["token_ids"].split())]
        logp_BT, _ = token_logprobs(model, np.array([ids]), np.arange(len(ids))[None])
        for t in range(len(prompt), len(ids)):
            by_position.setdefault(t // found["width"], []).append(float(logp_BT[0, t - 1]))
    plain, scaled = found["curves"]
    assert plain["tokens"] == [len(by_position.get(w, [])) for w in range(len(plain["tokens"]))]
    for window, values in by_position.items():
        assert plain["logprob"][window] == pytest.approx(np.mean(values), abs=1e-5)
    assert scaled["tokens"] == plain["tokens"] and scaled["logprob"] != plain["logprob"]
    assert (tmp_path / "positions.png").stat().st_size > 1000


def test_a_base_model_is_named_and_tags_are_made(base, tmp_path, capsys):
    assert run(base, tmp_path, "--checkpoint=base,latest", "--tag=one") == 2
    assert "--tag=one: 1 for 2 checkpoints; give one each" in capsys.readouterr().err
    assert run(base, tmp_path, "--checkpoint=base,latest") == 2
    assert "--checkpoint=latest: " in capsys.readouterr().err
    assert not list(tmp_path.glob("*responses*"))  # before anything was sampled
