"""When `evaluate` may go on with stored responses: same weights, problems and sampling, or not."""

import contextlib
import dataclasses
import json
import zlib
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from polaris_jax.assemble import open_solver
from polaris_jax.config import (
    ArithmeticSection,
    ConfigError,
    EvaluateSection,
    ModelSection,
    RewardSection,
    RunConfig,
)
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.demo.warmstart import warmstart_model_config
from polaris_jax.measure import evaluate, policy, respond, solve
from polaris_jax.measure.policy import Policy
from polaris_jax.measure.respond import response_identity
from polaris_jax.measure.responses import KeptResponses, ids_of, response_row
from polaris_jax.models import Decoder, RopeScaling, load_config
from polaris_jax.records import Graded, Problem, Response
from polaris_jax.reward import score_response
from polaris_jax.rollout.groups import with_texts
from polaris_jax.system.progress import Progress
from tests.support.stranger import random_qwen3

# float32: `model.dtype=auto` would look for weights, and these tests give their own.
CONFIG = dataclasses.replace(RunConfig(), model=ModelSection(dtype="float32"))
MODEL = Decoder.init(warmstart_model_config(CONFIG.warmstart, vocab_size=512), jax.random.key(0))
PROBLEMS = [Problem("a", "1 + 1?", "2"), Problem("b", "2 + 2?", "4")]


def identity(config=CONFIG, model=MODEL, problems=PROBLEMS):
    return response_identity(config, model, problems, max_response_tokens=8, yarn=False)


def other_weight() -> Decoder:
    params = MODEL.params()
    q = params["layers/q_DNH"]
    bumped = q.at[(0,) * q.ndim].set(np.nextafter(q[(0,) * q.ndim], np.float32(9)))
    return Decoder.from_params(MODEL.config, params | {"layers/q_DNH": bumped})


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda: {"model": other_weight()}, id="one bit of one matrix"),
        pytest.param(
            lambda: {"model": MODEL.with_rope_scaling(RopeScaling("linear", 2.0))}, id="rope"
        ),
        pytest.param(
            lambda: {"problems": [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], answer="5")]},
            id="an answer",
        ),
        pytest.param(lambda: {"problems": PROBLEMS[:1]}, id="a problem less"),
        pytest.param(lambda: {"config": with_evaluate(n=16)}, id="n"),
    ],
)
def test_what_a_response_depends_on_changes_the_identity(changed):
    assert identity(**changed()) != identity()


def with_evaluate(**changes) -> RunConfig:
    return dataclasses.replace(CONFIG, evaluate=EvaluateSection(**changes))


def test_what_is_drawn_from_the_responses_does_not():
    assert identity() == identity(problems=PROBLEMS[::-1])
    config = with_evaluate(budgets=(2, 4), length_edges=(4,), yarn="both", every_steps=3)
    assert identity(config=config) == identity()


def test_problems_that_cannot_be_asked_are_counted(tmp_path, monkeypatch):
    lines = ['{"problem": "1 + 1?", "answer": "2"}', '{"problem": "2?"}', "no JSON"]
    long = json.dumps({"problem": "and " * 500 + "1 + 1?", "answer": "2"})
    (tmp_path / "set.jsonl").write_text("\n".join([*lines, long]))
    row = {"problem_id": "a", "reward": 1.0, "tokens": 1, "finish_reason": "stop", "text": "2"}
    asked = []

    def sampled(given, *_, **__):
        asked.append(len(given.problems))
        return [row | {"sample": r, "well_formed": True} for r in range(given.config.evaluate.n)]

    monkeypatch.setattr(evaluate, "base_inputs", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(evaluate, "load_base", lambda *_: (MODEL, build_tokenizer()))
    monkeypatch.setattr(evaluate, "respond", sampled)
    config = with_evaluate(problems=str(tmp_path / "set.jsonl"), n=2, max_response_tokens=64)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, max_prompt_tokens=64)
    )
    evaluate.evaluate(config, epath.Path(tmp_path / "run"), progress=Progress(enabled=False))
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["left_out"] == {"malformed": 2, "long_prompt": 1}
    assert asked == [found["problems"]] == [1]


def test_a_model_of_its_own_needs_no_base(tmp_path, monkeypatch):
    """`model.dtype=auto` is decided for what is scored; model.path stays empty."""
    model_dir = random_qwen3(tmp_path / "model", positions=2048)
    (tmp_path / "set.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}')
    row = {"problem_id": "a", "reward": 1.0, "tokens": 1, "finish_reason": "stop", "text": "2"}
    seen, decide = [], policy.with_dtype

    def sampled(given, *_, **__):
        return [row | {"sample": r, "well_formed": True} for r in range(given.config.evaluate.n)]

    def decided(config, model_config, *rest):
        seen.append(model_config)
        return decide(config, model_config, *rest)

    monkeypatch.setattr(evaluate, "respond", sampled)
    monkeypatch.setattr(policy, "with_dtype", decided)
    config = with_evaluate(problems=str(tmp_path / "set.jsonl"), n=2, max_response_tokens=64)
    config = dataclasses.replace(config, model=ModelSection())
    assert (config.model.path, config.model.dtype) == ("", "auto")
    progress = Progress(enabled=False)
    workdir = epath.Path(tmp_path / "run")
    evaluate.evaluate(config, workdir, progress=progress, checkpoint=str(model_dir))
    assert json.loads((workdir / "eval.json").read_text())["checkpoint"] == str(model_dir)
    assert seen == [load_config(model_dir)]


def test_a_budget_past_the_models_positions_is_refused_before_anything_is_sampled(
    tmp_path, monkeypatch
):
    (tmp_path / "set.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}')
    monkeypatch.setattr(evaluate, "base_inputs", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(evaluate, "load_base", lambda *_: (MODEL, build_tokenizer()))
    monkeypatch.setattr(evaluate, "respond", lambda *_, **__: pytest.fail("it sampled"))
    config = with_evaluate(problems=str(tmp_path / "set.jsonl"))
    with pytest.raises(ConfigError, match=r"evaluate.max_response_tokens=39936: .* model's 512"):
        evaluate.evaluate(config, epath.Path(tmp_path / "run"), progress=Progress(enabled=False))


def written(text: str, tokenizer) -> Response:
    ids = tuple(tokenizer.encode(text))
    return Response(ids, (-1.0,) * len(ids), "stop")


FUNCTION = """
def half_for_two(response):
    assert response.extra == {"level": 3} and "1 + 1?" in response.prompt_text
    assert response.mode == "eval" and (response.finish_reason == "length") == (response.num_tokens == 6)
    return 0.5 if "2" in response.text else 0.25 if response.text else 0.0
"""  # noqa: E501


@pytest.mark.parametrize(
    ("correct_at", "average", "curve", "pass_2"),
    [(1.0, 0.0, [0.0, 0.0], 0.0), (0.5, 0.5, [0.0, 0.5], 1.0), (0.25, 1.0, [1.0, 1.0], 1.0)],
)
def test_an_evaluation_grades_with_the_function_and_counts_from_correct_at(
    tmp_path, monkeypatch, correct_at, average, curve, pass_2
):
    tokenizer = build_tokenizer()
    two, three = (written(f"well \\boxed{{{n}}}", tokenizer) for n in (2, 3))
    assert len(two.token_ids) == len(three.token_ids) > 6
    (tmp_path / "mine.py").write_text(FUNCTION)

    def sampled(sampler, groups, params, **options):
        (group,) = groups
        return [with_texts(dataclasses.replace(group, responses=(two, three)), tokenizer)]

    (tmp_path / "set.jsonl").write_text('{"problem": "1 + 1?", "answer": "2", "level": 3}')
    reward = RewardSection(function=f"{tmp_path}/mine.py:half_for_two", correct_at=correct_at)
    config = with_stand_ins(monkeypatch, tmp_path, tokenizer, sampled, reward)
    where = epath.Path(tmp_path / "run")
    found = evaluate.evaluate(config, where, progress=Progress(enabled=False))
    assert found["avg@k"] == average
    assert found["mean_reward"] == 0.375
    assert [point["accuracy"] for point in found["budget_curve"]] == curve
    assert found["pass@k"]["2"] == pass_2
    rows = [
        json.loads(line) for line in (tmp_path / "run/responses.jsonl").read_text().splitlines()
    ]
    assert [row["reward"] for row in rows if "reward" in row] == [0.5, 0.25]


FAILS = """
import pathlib

def right_or_raises(response):
    if "2" in response.text:
        return 1.0
    if pathlib.Path({flag!r}).exists():
        raise RuntimeError("no verdict")
    return 0.25
"""


@pytest.mark.parametrize("mended", [True, False])
def test_a_problem_whose_grading_failed_is_asked_again_once(tmp_path, monkeypatch, mended):
    tokenizer = build_tokenizer()
    two, three = (written(f"well \\boxed{{{n}}}", tokenizer) for n in (2, 3))
    flag, asked = tmp_path / "fails", []
    flag.touch()
    (tmp_path / "mine.py").write_text(FAILS.format(flag=str(flag)))

    def sampled(sampler, groups, params, **options):
        asked.append([group.problem_id for group in groups])
        return [
            with_texts(dataclasses.replace(group, responses=pair), tokenizer)
            for group in groups
            for pair in [(two, two if group.problem_id == "sure" else three)]
        ]

    rows = [{"id": id, "problem": "1 + 1?", "answer": "2"} for id in ("sure", "unsure")]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reward = RewardSection(function=f"{tmp_path}/mine.py:right_or_raises")
    config = with_stand_ins(monkeypatch, tmp_path, tokenizer, sampled, reward)
    where = epath.Path(tmp_path / "run")

    def run():
        asked.clear()
        found = evaluate.evaluate(config, where, progress=Progress(enabled=False))
        kept = [json.loads(line) for line in (where / "responses.jsonl").read_text().splitlines()]
        return found, {(row["problem_id"], row["sample"]): row for row in kept}, list(asked)

    found, kept, first = run()
    assert first == [["sure", "unsure"]]
    assert found["grading_failed"] == 1
    assert {at for at, row in kept.items() if row["grading_failed"]} == {("unsure", 1)}
    assert "reward_at_6" not in kept["unsure", 1]  # a 0 there would be kept for good
    if mended:
        flag.unlink()
    found, kept, again = run()
    assert again == [["unsure"]]
    assert found.get("grading_failed") == (None if mended else 1)
    assert kept["unsure", 1]["reward"] == (0.25 if mended else 0.0)
    assert found["avg@k"] == 0.75 and found.get("mean_reward") == (0.8125 if mended else None)
    assert run()[2] == []  # what fails each time is asked twice, not each time


def with_stand_ins(monkeypatch, folder, tokenizer, sampled, reward):
    """The config of an evaluation whose responses `sampled` makes: n=2, problems in set.jsonl."""
    monkeypatch.setattr(evaluate, "base_inputs", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(evaluate, "load_base", lambda *_: (MODEL, tokenizer))
    monkeypatch.setattr(respond, "open_policy", opener(tokenizer))
    monkeypatch.setattr(solve, "sample_groups", sampled)
    config = with_evaluate(
        problems=str(folder / "set.jsonl"), n=2, max_response_tokens=64, budgets=(6, 64)
    )
    data = dataclasses.replace(config.data, max_prompt_tokens=64)
    return dataclasses.replace(config, data=data, reward=reward)


def opener(tokenizer):
    @contextlib.contextmanager
    def opened(config, progress, *_, **__):
        samplers: Any = None
        with open_solver(config, tokenizer, samplers, model=None) as solver:
            sampler: Any = None
            yield Policy(solver, sampler)

    return opened


def test_a_batch_replaces_its_own_file_and_no_other(tmp_path):
    """Problems that are asked again come when as many are finished as before another batch."""
    kept = KeptResponses(epath.Path(tmp_path), {}, may_write=lambda: None)
    graded = {
        id: Graded(
            problem_ids=[id],
            prompts=[(1,)],
            golds=["2"],
            token_ids=[[(1,)]],
            logprobs=[[(-1.0,)]],
            texts=[[text]],
            finish_reasons=[["stop"]],
            reward_PR=np.array([[1.0]], np.float32),
        )
        for id, text in (("a", "first"), ("b", "other"))
    }
    for id in ("a", "b", "a", "b"):
        kept.write(graded[id], [p for p in PROBLEMS if p.id == id], before=7)
    rows = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert sorted((row["problem_id"], row["text"]) for row in rows) == [
        ("a", "first"),
        ("b", "other"),
    ]


def test_a_row_has_plain_columns_and_those_of_the_problem():
    problem = Problem("a", "1 + 1?", "2", extra={"level": 3, "reward": "mine", "tags": "x"})
    graded = Graded(
        problem_ids=["a"],
        prompts=[(1,)],
        golds=["2"],
        token_ids=[[(1, 2), (3,)]],
        logprobs=[[(-1.0, -1.0), (-1.0,)]],
        texts=[["so 2", "3"]],
        finish_reasons=[["length", "stop"]],
        reward_PR=np.array([[0.0, 1.0]], np.float32),
        answers=[[None, "2"]],
        reasons=[["no answer", ""]],
    )
    row = response_row(problem, graded, 0, 0, {1: 0.0})
    assert not any(isinstance(value, dict | list) for value in row.values())
    wanted = {"question": "1 + 1?", "gold": "2", "answer": None, "reason": "no answer"}
    wanted |= {"reward": 0.0, "reward_at_1": 0.0, "level": 3, "tags": "x", "extra_reward": "mine"}
    assert row == row | wanted


def test_each_budget_grades_what_it_leaves_of_a_response(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    early = written(r"so \boxed{2} or \boxed{3}", tokenizer)  # right until it is changed
    late = written(r"well \boxed{2}", tokenizer)
    at = len(tokenizer.encode(r"so \boxed{2} or"))
    assert at < len(early.token_ids) and at >= len(late.token_ids)

    def sampled(sampler, groups, params, **options):
        (group,) = groups
        return [with_texts(dataclasses.replace(group, responses=(early, late)), tokenizer)]

    (tmp_path / "set.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}')
    monkeypatch.setattr(evaluate, "base_inputs", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(evaluate, "load_base", lambda *_: (MODEL, tokenizer))
    monkeypatch.setattr(respond, "open_policy", opener(tokenizer))
    monkeypatch.setattr(solve, "sample_groups", sampled)
    lines: list[str] = []
    progress = Progress(enabled=False)
    monkeypatch.setattr(progress, "line", lines.append)
    where = epath.Path(tmp_path / "run")

    def curve(*budgets: int) -> list[float]:
        source = str(tmp_path / "set.jsonl")
        config = with_evaluate(problems=source, n=2, max_response_tokens=64, budgets=budgets)
        data = dataclasses.replace(config.data, max_prompt_tokens=64)
        config = dataclasses.replace(config, data=data)
        summary = evaluate.evaluate(config, where, progress=progress)
        return [point["accuracy"] for point in summary["budget_curve"]]

    assert curve(1, at, 64) == [0.0, 1.0, 0.5]
    path = tmp_path / "run" / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [ids_of(row) for row in rows] == [early.token_ids, late.token_ids]
    monkeypatch.setattr(solve, "sample_groups", lambda *_, **__: pytest.fail("it sampled again"))
    assert curve(1, at, 64) == [0.0, 1.0, 0.5]
    # Later budgets are graded by the stored token ids, and nothing is sampled for them.
    assert curve(at + 1, 64) == [1.0, 0.5]
    asked = (2, at - 2, at - 1, len(early.token_ids) - 1)

    def graded(response: Response, budget: int) -> float:
        text = tokenizer.decode(response.token_ids[:budget], skip_special_tokens=True)
        return score_response(text, "2", mode="eval")

    expected = [(graded(early, budget) + graded(late, budget)) / 2 for budget in asked]
    assert len(set(expected)) > 1
    assert curve(*asked, 64) == [*expected, 0.5]
    assert [line for line in lines if f"budgets [{at + 1}]: grading" in line]

    # A file of a version without token ids still counts for the budgets of that time alone.
    for row in rows:
        del row["token_ids"]
    rewrite(path, rows)
    assert curve(1, at, 64) == [0.0, 1.0, 0.5]
    with pytest.raises(ConfigError, match=rf"evaluate.budgets=\({at + 1}, 64\): .*evaluate.seed"):
        curve(at + 1, 64)


def rewrite(path, rows) -> None:
    """Writes rows as if `evaluate` had."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(content)
    beside = path.with_name("responses.identity.json")
    identity = json.loads(beside.read_text())
    identity["rows"] = {"count": len(rows), "crc32": zlib.crc32(content)}
    beside.write_text(json.dumps(identity))


def test_a_missing_checkpoint_is_refused_before_any_warm_start(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "base_inputs", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(evaluate, "load_base", lambda *_: pytest.fail("a base model was asked for"))
    data = dataclasses.replace(CONFIG.data, arithmetic=ArithmeticSection(train=8, held_out=4))
    config = dataclasses.replace(CONFIG, data=data)
    with pytest.raises(ConfigError, match=r"--checkpoint=latest: .* does not exist"):
        evaluate.evaluate(
            config, epath.Path(tmp_path), progress=Progress(enabled=False), checkpoint="latest"
        )
