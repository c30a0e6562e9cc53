"""`polaris show`: what a person sees of a run's responses, and that no response can harm them."""

import json
import re

import pytest

from polaris_jax.__main__ import main


def row(problem="p0", sample=0, reward=0.0, **more):
    fields = {
        "problem_id": problem,
        "sample": sample,
        "attempt": 0,
        "question": f"Question of {problem}?",
        "gold": "4",
        "text": f"text {problem}/{sample}",
        "tokens": 9,
        "finish_reason": "stop",
        "reward": reward,
        "answer": "5",
        "reason": "" if reward else "another number",
    }
    return fields | more


RESCUE = {"rescue_step": 3, "rescue_reward": 1.0, "rescue_text": "the stored one"}
ROWS = [
    *(row("p0", s, reward=float(s == 1)) for s in range(2)),
    *(row("p1", s, **(RESCUE if s else {})) for s in range(2)),
    *(row("p2", s, reward=1.0) for s in range(2)),
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def workdir(tmp_path):
    for step in (0, 2, 10):
        write(tmp_path / "rollouts" / f"step_{step:06d}.jsonl", ROWS)
    return tmp_path


def show(capsys, *args):
    status = main(["show", *map(str, args)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_newest_step_with_all_that_a_person_needs(workdir, capsys):
    status, out, _ = show(capsys, workdir)
    assert status == 0
    head, *groups = out.split("\n\n")
    assert head == (
        "step 10: 3 problems, 6 responses: mean reward 0.500, 3 correct, 0 cut by the budget, "
        "1 groups rescued"
    )
    assert [group.splitlines()[0] for group in groups] == [
        "=== problem p0: 1 of 2 correct",
        "=== problem p1: 0 of 2 correct, rescued",
        "=== problem p2: 2 of 2 correct, all rewards equal: it teaches nothing",
    ]
    assert "question:\n  | Question of p0?\ngold:\n  | 4\n" in groups[0]
    assert "--- response 0: reward 0.0, answer 5, 9 tokens\n  | text p0/0\n" in groups[0]
    assert "  reason: another number\n" in groups[0]
    assert "a response of step 3, reward 1.0\n  | the stored one" in groups[1]


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["--wrong"], ["p0/0", "p1/0", "p1/1"]),
        (["--rescued"], ["p1/0", "p1/1"]),
        (["--limit=1"], ["p0/0", "p0/1"]),
        (["--limit", "1", "--rescued"], ["p1/0", "p1/1"]),
        (["--step", "2", "--limit=0"], [f"p{p}/{s}" for p in range(3) for s in range(2)]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_chosen(workdir, capsys, args, shown):
    for words in ([workdir, *args], [*args, workdir], [f"--workdir={workdir}", *args]):
        status, out, _ = show(capsys, *words)
        assert status == 0
        assert re.findall(r"text (p\d/\d)", out) == shown
    if "--limit=1" in args:
        assert "2 more problems; --limit=3 shows all" in out


def test_correct_is_what_the_run_calls_correct(workdir, capsys):
    (workdir / "run.json").write_text(json.dumps({"config": {"reward.correct_at": 0.7}}))
    write(
        workdir / "rollouts" / "step_000011.jsonl", [row(reward=0.699999988079071), row(reward=0.6)]
    )
    assert "1 correct" in show(capsys, workdir)[1]
    responses = workdir / "after_responses.jsonl"
    write(responses, [row(reward=0.6), row(reward=0.2)])
    assert "0 correct" in show(capsys, responses)[1]
    (workdir / "after_eval.json").write_text(json.dumps({"correct_at": 0.5}))
    assert "1 correct" in show(capsys, responses)[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step", "1"], "has no such step; has 0, 2, 10"),
        (["--steps", "1"], "did you mean --step?"),
        (["another"], "name one directory"),
        (["--limit=-1"], "--limit"),
    ],
)
def test_a_mistake_is_one_line(workdir, capsys, args, words):
    status, out, err = show(capsys, workdir, *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_directory_without_rollouts_says_what_it_has(tmp_path, capsys):
    assert show(capsys)[2].startswith("error: DIR: needed")
    assert "no such directory" in show(capsys, tmp_path / "away")[2]
    assert "rollout.save_every=0" in show(capsys, tmp_path)[2]
    path = write(tmp_path / "before_responses.jsonl", [{"identity": {}}, row()])
    assert f"name a file: {path}" in show(capsys, tmp_path)[2]
    status, out, _ = show(capsys, path)
    assert (status, out.count("--- response")) == (0, 1)


def test_a_long_list_of_steps_is_shortened(tmp_path, capsys):
    for step in range(0, 100, 2):
        write(tmp_path / "rollouts" / f"step_{step:06d}.jsonl", [row()])
    error = show(capsys, tmp_path, "--step=3")[2]
    assert "has 50 steps from 0 on, the last of them 76, 78" in error


def test_a_long_text_is_shortened_at_its_middle(tmp_path, capsys):
    path = write(tmp_path / "r.jsonl", [row(text="a" * 5000 + "the end")])
    out = show(capsys, path, "--chars=90")[1]
    assert f"  | {'a' * 30}\n  | [... 4,917 characters ...]\n  | {'a' * 53}the end\n" in out
    assert "a" * 5000 + "the end" in show(capsys, path, "--chars=0")[1]


def test_torn_and_damaged_lines_are_counted(tmp_path, capsys):
    path = write(tmp_path / "r.jsonl", [row()])
    rest = [
        b"no json\n",
        b"[1]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"x": 1e999}\n',
        b'{"problem_id',
    ]
    path.write_bytes(path.read_bytes() + b"".join(rest))
    status, out, err = show(capsys, path)
    assert (status, err) == (0, "")
    assert "4 lines cannot be read" in out


HOSTILE = {
    "escape": "\x1b[2J\x1b]0;title\x07",
    "carriage return": "safe\rFORGED",
    "backspace": "a\x08\x08b",
    "C1": "\x9b31m",
    "bidirectional": "\u202egnp.exe\u2066x\u2069",
    "half surrogate": "\ud800 and \udfff",
    "line separator": "one\u2028two\u2029three",
    "forged line": "x\n=== problem p9: 9 of 9 correct",
    "forged response": "x\n--- response 7: reward 1.0",
}
BARE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "field",
    ["problem_id", "sample", "attempt", "question", "gold", "text", "tokens", "finish_reason",
     "reward", "answer", "reason", "rescue_text", "rescue_step"],
)  # fmt: skip
def test_hostile_text_is_harmless(tmp_path, capsys, field, text):
    fields = RESCUE | {field: text}
    path = write(tmp_path / "r.jsonl", [row() | fields, row("p9", 1)])
    status, out, _ = show(capsys, path)
    assert status == 0
    assert BARE.search(out) is None
    out.encode()
    forged = [
        line
        for line in out.splitlines()
        if line.startswith(("=== problem p9: 9", "--- response 7"))
    ]
    assert forged == []


@pytest.mark.parametrize(
    "value",
    [None, True, 10**400, -1e308, [], {}, [[["x"]], {"a": "\x1b"}], {"a": {"b": 1}}],
    ids=repr,
)
@pytest.mark.parametrize(
    "field", ["problem_id", "gold", "text", "reward", "answer", "reason", "rescue_text"]
)
def test_values_of_other_types_are_shown_as_they_are(tmp_path, capsys, field, value):
    path = write(tmp_path / "r.jsonl", [row(**{field: value}), row()])
    status, out, err = show(capsys, path)
    assert (status, err) == (0, "")
    assert BARE.search(out) is None
