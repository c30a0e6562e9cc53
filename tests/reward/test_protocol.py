"""Reward functions: how a config names them, what they see and may return, how they fail."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polaris_jax.config import ConfigError
from polaris_jax.reward import Grader, RewardInput, math_reward, score_response
from polaris_jax.reward import pool as pool_module
from polaris_jax.reward.protocol import MATH, combined, function_texts, parse_functions

FUNCTIONS = '''
import math, os, subprocess, sys, time
import numpy as np
import beside

def letter(r):
    return min(1.0, r.text.count("e") / 10)

def parts(r):
    return {"reward": "e" in r.text, "length": r.num_tokens, "none": None, "numpy": np.float32(0.5)}

def sees(r):
    seen = (r.text, r.prompt_text, r.answer, r.problem_id, r.extra, r.finish_reason, r.num_tokens, r.mode, r.opening)
    return float(seen == ("text", "prompt", ["1", 2], "p", {"tests": [1, {"a": "b"}]}, "length", 7, "eval", "o"))

def depends(r):
    return r.extra.get("value", 0.0)

def talks(r):
    print('[1.0, {}]')
    os.write(1, b'[1.0, {}]\\n')
    return 0.5 if sys.stdin.readline() == "" else 0.0

def child(r):
    started = subprocess.Popen(["sleep", "600"])
    open(r.extra["path"], "w").write(str(started.pid))
    while True:
        time.sleep(1)

def forks(r):
    if os.fork() == 0:
        return parts(r) | {"reward": 1.0}  # comes back to the worker's own code
    time.sleep(0.2)
    return r.extra["value"]

def leaves(r):
    started = subprocess.Popen(["sleep", "600"])
    open(r.extra["path"], "w").write(str(started.pid))
    return 0.5

class Tensor:
    def item(self):
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
    def __repr__(self):
        return "tensor([1., 1.])"

def other(r):
    return {"reward": 0.0, "length": -1.0}

def fails(r):
    if r.text == "hangs":
        while True:
            pass
    if r.text == "raises":
        raise KeyError("no\\nsuch")
    if r.text == "exits":
        sys.exit(3)
    if r.text == "dies":
        os._exit(3)
    if r.text == "fills":
        bytearray(1 << 40)
    return {"nan": math.nan, "2.0": 2.0, "below": -0.1, "text": "1", "none": None, "no reward": {"x": 1},
            "bad part": {"reward": 1.0, "x": "y"}, "bad name": {"reward": 1.0, 3: 4}, "list": [1.0],
            "array": np.ones(2), "tensor": Tensor(), "taken": {"reward": 1.0, "errors": 0}, "huge": 10**400}.get(r.text, beside.GOOD)

good = 1.0
'''  # fmt: skip  # noqa: E501

ENDS = {
    "hangs": ("timeout", "timeouts", "no verdict within the deadline"),
    "raises": ("error", "errors", "KeyError: 'no\\nsuch'"),
    "exits": ("error", "errors", "SystemExit: 3"),
    "dies": ("crash", "crashes", "its worker died twice"),
    "fills": ("memory", "memory", "the worker's memory limit"),
    "nan": ("invalid", "invalid", "returned nan; a reward lies in [0, 1]"),
    "2.0": ("invalid", "invalid", "returned 2.0"),
    "below": ("invalid", "invalid", "returned -0.1"),
    "text": ("invalid", "invalid", "returned '1'"),
    "none": ("invalid", "invalid", "returned None"),
    "no reward": ("invalid", "invalid", "returned a dict without 'reward': {'x': 1}"),
    "bad part": ("invalid", "invalid", "returned 'x': 'y'; an entry is a number or None"),
    "bad name": ("invalid", "invalid", "returned 3: 4; an entry is a number or None"),
    "list": ("invalid", "invalid", "returned [1.0]"),
    "array": ("invalid", "invalid", "returned array([1., 1.])"),
    "tensor": ("invalid", "invalid", "returned tensor([1., 1.])"),
    "taken": ("invalid", "invalid", "returned an entry 'errors', which is a count of the grader's"),
    "huge": ("invalid", "invalid", "returned 1000"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "mine.py"
    path.write_text(FUNCTIONS)
    (path.parent / "beside.py").write_text("GOOD = 1.0\n")
    return path


def grades(function: str, *responses: RewardInput, timeout_s: float = 10.0):
    with Grader(workers=1, timeout_s=timeout_s, function=function) as grader:
        found = grader.grade_inputs(responses)
        return found, grader.stats()


# ---- names


def test_names_and_weights() -> None:
    assert parse_functions("") == parse_functions(MATH) == ((MATH, 1.0),)
    assert parse_functions("a.py:f") == (("a.py:f", 1.0),)
    assert parse_functions(" /x/a.py:f*0.8, b.c:g * 0.2") == (("/x/a.py:f", 0.8), ("b.c:g", 0.2))
    assert parse_functions("a:f*0.1,a:f*0.2,a:f*0.7")[2] == ("a:f", 0.7)


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("a.py", "'a.py' names no function"),
        ("a.py:", "names no function"),
        (":f", "names no function"),
        ("a.py:f,", "'' names no function"),
        ("a.py:f*0.5", "the weights sum to 0.5 and must sum to 1"),
        ("a.py:f,b.py:g", "the weights sum to 2"),
        ("a.py:f*0.8,b.py:g*0.3", "the weights sum to 1.1"),
        ("a.py:f*x,b.py:g", "'x' is no weight"),
        ("a.py:f*1.5,b.py:g*-0.5", "the weight 1.5 must be above 0"),
        ("a.py:f*nan,b.py:g", "the weight nan must be above 0"),
    ],
)
def test_names_that_are_refused(spec: str, rule: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Grader(function=spec)
    assert str(refused.value).startswith(f"reward.function={spec!r}: ")
    assert rule in str(refused.value)
    assert "write file.py:name or package.module:name" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "name", "rule"),
    [
        (None, "f", "there is no file"),
        ("def f(r:\n", "f", "fails: SyntaxError"),
        ("import no_such_module\n", "f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0\n", "f", "fails: ZeroDivisionError"),
        ("raise SystemExit\n", "f", "fails: SystemExit"),
        ("import os\nos._exit(9)\n", "f", "ended 3 times before it was ready: exit status 9"),
        ("g = 1\n", "f", "has no 'f'; name a function that it defines"),
        ("f = 1\n", "f", "has the type int and is not callable"),
    ],
    ids=["missing", "syntax", "import", "raises", "exits", "dies", "no-name", "no-function"],
)
def test_functions_that_cannot_be_used(tmp_path: Path, text, name, rule) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        Grader(workers=1, function=f"{path}:{name}")
    assert rule in str(refused.value)
    assert str(refused.value).startswith(f"reward.function='{path}:{name}': ")
    assert "\n" not in str(refused.value)


def test_a_module_of_the_present_directory_and_a_function_of_ours(tmp_path, monkeypatch) -> None:
    (tmp_path / "here.py").write_text("def f(r):\n    return 0.25\n")
    (tmp_path / "random.py").write_text("1 / 0\n")  # nothing here hides what Python has
    monkeypatch.chdir(tmp_path)
    response = RewardInput("</think> \\boxed{\\frac{2}{2}}", answer="1")
    spec = f"here:f*0.5,{MATH}*0.5"
    assert grades(spec, response)[0][0].reward == 0.625


# ---- what a function sees and returns


def test_a_function_sees_the_response_and_its_problem(file: Path) -> None:
    response = RewardInput(
        "text", "prompt", ["1", 2], "p", {"tests": [1, {"a": "b"}]}, "length", 7, "eval", "o"
    )
    assert grades(f"{file}:sees", response)[0][0].reward == 1.0
    for field in dataclasses.fields(RewardInput):
        other = dataclasses.replace(
            response, **{field.name: 9 if field.name != "mode" else "train"}
        )
        assert grades(f"{file}:sees", other)[0][0].reward == 0.0, field.name


def test_rewards_and_parts_of_one_function(file: Path) -> None:
    (one, two), stats = grades(
        f"{file}:parts", RewardInput("eee", num_tokens=3), RewardInput("x", num_tokens=1)
    )
    assert (one.reward, two.reward) == (1.0, 0.0)
    assert one.parts == {"length": 3.0, "none": None, "numpy": 0.5}
    assert (one.layer, one.reason) == ("function", "")
    assert (stats["graded"], stats["correct"], stats["layer/function"]) == (2, 1, 2)


def test_the_sum_of_several_functions_is_rounded(file: Path) -> None:
    assert combined([1.0, 1.0, 1.0], [0.1, 0.2, 0.7]) == 1.0  # 0.9999999999999999 as floats
    assert combined([1 / 3], [1.0]) == 0.333333
    found, _ = grades(f"{file}:letter*0.3,{file}:parts*0.7", RewardInput("eee", num_tokens=3))
    assert found[0].reward == 0.79


def test_of_two_entries_of_one_name_the_later_functions_counts(file: Path) -> None:
    both = f"{file}:parts*0.5,{file}:other*0.5"
    assert grades(both, RewardInput("e", num_tokens=3))[0][0].parts["length"] == -1.0


def test_equal_responses_to_different_problems_are_graded_apart(file: Path) -> None:
    responses = [RewardInput("same", answer="1", extra={"value": v}) for v in (0.25, 0.5, 0.25)]
    found, stats = grades(f"{file}:depends", *responses)
    assert [grade.reward for grade in found] == [0.25, 0.5, 0.25]
    assert (stats["worked"], stats["cached"], stats["quick"]) == (3, 0, 0)


def test_what_a_function_prints_or_reads_is_no_message(file: Path) -> None:
    found, _ = grades(f"{file}:talks", *[RewardInput("x")] * 3)
    assert [grade.reward for grade in found] == [0.5] * 3


def test_texts_and_golds_alone_reach_a_function(file: Path) -> None:
    with Grader(workers=1, function=f"{file}:letter") as grader:
        golds = [np.int64(1), np.array([1, 2]), None]
        assert grader.score(["e", "ee", "x"], golds).tolist() == np.float32([0.1, 0.2, 0]).tolist()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_math_grader_is_a_reward_function(mode) -> None:
    texts = ["\\boxed{\\frac{4}{2}}", "</think> \\boxed{2}", "</think> \\boxed{3}", ""]
    inputs = [RewardInput(text, "<think>", "2", mode=mode) for text in texts]
    alone = [score_response(("<think>" if mode == "train" else "") + t, "2", mode) for t in texts]
    assert [math_reward(one) for one in inputs] == alone
    assert sum(alone) == {"train": 1.0, "eval": 2.0}[mode]
    for spec in ("", MATH, f"{MATH}*0.5,{MATH}*0.5"):
        assert [grade.reward for grade in grades(spec, *inputs)[0]] == alone


ASKED = "Think between <think> and </think>."


@pytest.mark.parametrize(
    ("prompt", "opening", "thought", "expected"),
    [
        (f"{ASKED}\nWhat is 2 + 3?\nassistant: ", "\nassistant: ", True, 0.0),
        (f"{ASKED}\nWhat is 2 + 3?\nassistant: ", None, True, 0.0),
        (f"What is 2 + 3? {ASKED[:-1]}", "", True, 0.0),
        ("Q\nassistant: <think>", "\nassistant: <think>", True, 0.0),
        ("Q\nassistant: <think></think>\n", "\nassistant: <think></think>\n", False, 1.0),
        ("Q\nassistant: <think></think>\n", None, False, 1.0),
        ("Q\nassistant: <think></think>So ", "\nassistant: <think></think>So ", False, 1.0),
        (f"{ASKED}\nassistant: ", "\nassistant: ", False, 0.0),
    ],
    ids=["system", "unknown", "question", "begun", "ended", "unknown end", "prefill", "no tag"],
)
def test_a_prompts_tag_counts_where_it_begins_the_response(
    prompt, opening, thought, expected
) -> None:
    text = r"maybe \boxed{5}</think> The answer is \boxed{6}." if thought else r"It is \boxed{5}."
    response = RewardInput(text, prompt, "5", opening=opening)
    assert math_reward(response) == expected
    assert grades("", response)[0][0].reward == expected
    whole = dataclasses.replace(response, mode="eval")
    assert math_reward(whole) == float(not thought)  # the last box, whatever the prompt says


# ---- failures


def test_each_failure_scores_0_and_is_counted_and_named_once(file: Path, capfd) -> None:
    texts = [*ENDS, *ENDS, "good"]
    responses = [RewardInput(text, problem_id=f"id of {text}") for text in texts]
    found, stats = grades(f"{file}:fails", *responses, timeout_s=1.0)
    for text, grade in zip(texts, found, strict=True):
        layer, _, reason = ENDS.get(text, ("function", "", ""))
        assert (grade.reward, grade.layer) == (float(text == "good"), layer), text
        assert grade.reason.startswith(reason), text
        assert grade.parts == {}
    counts = [count for _, count, _ in ENDS.values()]
    for count in set(counts):
        assert stats[count] == 2 * counts.count(count), count
    assert sum(n for name, n in stats.items() if name.startswith("layer/")) == stats["graded"]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(set(counts))  # one a kind, whatever the text
    for text in ("hangs", "raises", "dies", "fills", "nan"):
        _, count, reason = ENDS[text]
        line = next(line for line in lines if f"counted as {count}," in line)
        assert line.startswith(f"warning: reward.function: {file}:fails: {reason}")
        assert f"(problem 'id of {text}')" in line


def test_a_failure_of_one_of_several_is_a_reward_of_0_and_names_that_one(file, capfd) -> None:
    spec = f"{file}:letter*0.5,{file}:fails*0.5"
    texts = ("hangs", "raises", "e")
    found, _ = grades(spec, *(RewardInput(text) for text in texts), timeout_s=1.0)
    assert [grade.reward for grade in found] == [0.0, 0.0, 0.55]
    lines = capfd.readouterr().err.splitlines()
    assert all(f"{file}:fails: " in line for line in lines)
    assert len(lines) == 2


def test_what_a_hanging_function_has_started_ends_with_it(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    found, _ = grades(f"{file}:child", RewardInput("x", extra={"path": str(path)}), timeout_s=2.0)
    assert found[0].layer == "timeout"
    pid, deadline_s = int(path.read_text()), time.monotonic() + 10
    while time.monotonic() < deadline_s and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def test_what_a_function_has_started_ends_with_the_grader(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    found, _ = grades(f"{file}:leaves", RewardInput("x", extra={"path": str(path)}))
    assert found[0].reward == 0.5
    pid, deadline_s = int(path.read_text()), time.monotonic() + 10
    while time.monotonic() < deadline_s and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def test_a_fork_of_the_worker_answers_nothing(file: Path) -> None:
    values = [0.125, 0.25, 0.5]
    responses = [RewardInput("x", extra={"value": value}) for value in values]
    for spec in (f"{file}:forks", f"{file}:forks*0.5,{file}:forks*0.5"):
        found, stats = grades(spec, *responses)
        assert [grade.reward for grade in found] == values
        assert stats["crashes"] == stats["errors"] == 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLOW = "import time\n\ndef f(r):\n    time.sleep(60 * (r.text == 'slow'))\n    return 1"


@pytest.mark.parametrize("text", [SLOW.replace("return 1", "return 0.5"), "def f(r", "", None])
def test_one_grader_rewards_by_one_text_of_a_file(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SLOW)
    with Grader(workers=1, timeout_s=0.5, function=f"{path}:f") as grader:
        texts = function_texts(f"{path}:f*0.5,{MATH}*0.5")
        assert list(texts) == [f"text of {path}:f"]
        assert grader.score(["x"], ["1"]).tolist() == [1.0]
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(RuntimeError, match=f"{path}:f: the file was edited or is gone since"):
            grader.score(["slow", "x"], ["1", "1"])
        path.write_text(SLOW)
        assert grader.score(["slow", "x"], ["1", "1"]).tolist() == [0.0, 1.0]
    assert function_texts(f"{path}:f") == texts


def test_one_slow_start_ends_no_command_whose_functions_were_imported_before(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Grader(workers=1, timeout_s=0.5, function=f"{file}:depends") as grader:
        real, starts = pool_module.worker_command, []

        def command(*arguments: Any) -> list[str]:
            starts.append(0)
            slow = [sys.executable, "-c", "import time; time.sleep(60)"]
            return slow if len(starts) == 1 else real(*arguments)

        monkeypatch.setattr(pool_module, "worker_command", command)
        monkeypatch.setattr(pool_module, "START_TIMEOUT_S", 5.0)
        grader._pool.workers.pop().stop()
        assert grader.score(["x"], ["1"]).shape == (1,)
        assert len(starts) == 2


def test_user_code_is_not_imported_here(file: Path) -> None:
    script = f"""
import sys
from polaris_jax.reward import Grader
with Grader(workers=1, function={f"{file}:letter"!r}) as grader:
    grader.score(["e"], ["1"])
print(sorted(name for name in sys.modules if "beside" in name or "reward_function" in name))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]", done.stderr
