"""`polaris evaluate --compare` on files that are there: what it reads of them, and refuses."""

from __future__ import annotations

import json

import pytest

from polaris_jax.__main__ import main
from polaris_jax.config import EvaluateSection
from polaris_jax.evaluate.scoring import score_rows
from tests.support.report.bars import figures_of

SECTION = EvaluateSection(n=2, length_edges=(4,), budgets=(8,))


def write_evaluation(workdir, *, suffix=" Think.", question="1 + 1?", reward=1.0):
    """The files of an evaluation of two problems."""
    workdir.mkdir()
    rows = [
        {
            "problem_id": f"p{p}",
            "sample": r,
            "question": question,
            "gold": "2",
            "reward": float(p == r),
            "answer": "2",
            "tokens": 3,
            "finish_reason": "stop",
            "well_formed": True,
            "text": "2",
            "token_ids": "1 2 3",
        }
        for p in range(2)
        for r in range(2)
    ]
    figures = score_rows(rows, SECTION, correct_at=1.0, max_response_tokens=8)
    rows[0]["reward"] = reward
    (workdir / "eval.json").write_text(json.dumps(figures))
    (workdir / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    identity = {"settings": {"data.prompt_suffix": suffix, "yarn": False}, "inputs": {}, "rows": {}}
    (workdir / "responses.identity.json").write_text(json.dumps(identity))
    return workdir


def compare(tmp_path, *workdirs):
    return main(["evaluate", "--compare", *map(str, workdirs), f"--out={tmp_path / 'out'}"])


def test_the_prompt_and_the_questions_are_compared_too(tmp_path, monkeypatch, capsys):
    figures_of(monkeypatch)
    one = write_evaluation(tmp_path / "a")
    other = write_evaluation(tmp_path / "b", suffix=" Answer.", question="3 - 1?")
    assert compare(tmp_path, one, other) == 0
    said = capsys.readouterr().out
    assert 'warning: data.prompt_suffix differs (a " Think."; b " Answer.")' in said
    assert "warning: 2 of 2 common ids, such as 'p0', have another question" in said
    found = json.loads((tmp_path / "out" / "eval_compared.json").read_text())
    assert len(found["warnings"]) == 2
    (other / "responses.identity.json").write_text("{")  # damaged: not known
    assert compare(tmp_path, one, other) == 0
    assert "prompt_suffix" not in capsys.readouterr().out


@pytest.mark.parametrize("reward", [float("nan"), 1.5, -0.1])
def test_a_reward_that_is_none_is_refused(tmp_path, reward, capsys):
    one = write_evaluation(tmp_path / "a")
    other = write_evaluation(tmp_path / "b", reward=reward)
    assert compare(tmp_path, one, other) == 2
    assert f"line 1: reward={reward}: must be in [0, 1]" in capsys.readouterr().err
