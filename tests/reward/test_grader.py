"""The pool of grading processes: order, deadlines, deaths, limits, and the places it runs in."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polaris_jax.config.sections import MAX_ANSWER_TIMEOUT_S
from polaris_jax.reward import Grader
from polaris_jax.reward import pool as pool_module

ROOT = Path(__file__).resolve().parents[2]

# The true worker loop around an `answers_match` that misbehaves on command.
STUB = """
import os, sys, time
sys.path.insert(0, {root!r})
from polaris_jax.reward import worker
from polaris_jax.reward.math import equivalence

def explain(answer, golds, preset):
    if "hang" in answer:
        while True:
            pass
    if "sleep" in answer:
        time.sleep(3600)
    if "die" in answer:
        os._exit(3)
    if "fill" in answer:
        bytearray(1 << 34)
    if "raise" in answer:
        raise KeyError(answer)
    if "modules" in answer:
        equal = not {{"jax", "numpy", "sympy", "torch"}} & set(sys.modules)
    else:
        equal = answer.strip("x") in golds
    return equal, "stub", "", "", ""

equivalence.explain = explain
worker.main({timeout_s}, {memory}, "default")
"""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(timeout_s: float, memory_limit_bytes: int, *_: object) -> list[str]:
        text = STUB.format(root=str(ROOT), timeout_s=timeout_s, memory=memory_limit_bytes)
        return [sys.executable, "-c", text]

    monkeypatch.setattr(pool_module, "worker_command", command)


def boxed(*answers: str) -> list[str]:
    return [rf"</think> \boxed{{{answer}}}" for answer in answers]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds: float) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_rewards_come_in_order() -> None:
    answers = [r"\frac{10}{2}", "5", "6", r"\sqrt{25}", "x", "2+3", "7"]
    with Grader(workers=2) as grader:
        rewards = grader.score([*boxed(*answers), "no box"], ["5"] * 8)
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [1, 1, 0, 1, 0, 1, 0, 0]


def test_golds_of_every_kind_and_eval_mode() -> None:
    texts = [r"\boxed{\frac{284}{2}}", r"\boxed{\frac{1}{2}}", r"\boxed{2}", r"\boxed{1}"]
    with Grader(workers=1) as grader:
        rewards = grader.score(texts, [142.0, ["1\n", "0.5"], np.int64(2), None], mode="eval")
    assert rewards.tolist() == [1, 1, 1, 0]


def test_no_answers_at_all() -> None:
    with Grader(workers=1) as grader:
        assert grader.score([], []).shape == (0,)


def test_plain_numbers_start_no_worker() -> None:
    texts = [rf"think </think> so \boxed{{{n % 7}}}" for n in range(256)]
    with Grader() as grader:
        rewards = grader.score(texts, [n % 5 for n in range(256)])
        assert rewards.tolist() == [float(n % 7 == n % 5) for n in range(256)]
        assert grader.stats()["quick"] == 256
        assert not grader._pool.workers


def test_the_quick_way_and_the_workers_agree() -> None:
    from polaris_jax.reward import answers_match
    from polaris_jax.reward.math.equivalence import gold_texts, quick_verdict

    texts = ["5", "5.0", "-5", "05", "5.50", "11/2", "x", "x+1", "(5)", "", "0", "-0", "1e3"]
    for answer in texts:
        for gold in texts:
            quick = quick_verdict(answer, gold_texts(gold)) if gold_texts(gold) else None
            assert quick is None or quick.equal == answers_match(answer, gold), (answer, gold)


def test_repeated_answers_are_graded_once(stub: None) -> None:
    with Grader(workers=2) as grader:
        grader.score(boxed("x5", "x5", "x6", "x5"), ["5"] * 4)
        grader.score(boxed("x5", "x6"), ["5"] * 2)
        stats = grader.stats()
    assert (stats["worked"], stats["cached"], stats["graded"]) == (2, 4, 6)


@pytest.mark.parametrize("kind", ["hang", "sleep"])
def test_a_hanging_answer_costs_that_answer(stub: None, kind: str) -> None:
    answers = ["x5", kind, "x6", f"{kind}2", "xx5"]
    with Grader(workers=2, timeout_s=0.5) as grader:
        start_s = time.monotonic()
        rewards = grader.score(boxed(*answers), ["5"] * 5)
        took_s = time.monotonic() - start_s
        assert rewards.tolist() == [1, 0, 0, 0, 1]
        assert 0.5 <= took_s < 30.0  # 2 hangs side by side and 4 starts, not an hour's sleep
        assert grader.stats()["timeouts"] == 2
        assert grader.score(boxed("xxx5"), ["5"]).tolist() == [1]


def test_a_dying_worker_is_replaced_and_its_answer_tried_twice(stub: None) -> None:
    with Grader(workers=1) as grader:
        assert grader.score(boxed("x5", "die", "xx5"), ["5"] * 3).tolist() == [1, 0, 1]
        assert grader.stats()["crashes"] == 1


def test_an_error_in_a_worker_is_counted_and_it_lives_on(stub: None) -> None:
    with Grader(workers=1) as grader:
        grader.score(boxed("x5"), ["5"])
        pid = grader._pool.workers[0].process.pid
        assert grader.score(boxed("raise", "xx5"), ["5"] * 2).tolist() == [0, 1]
        assert grader.stats()["errors"] == 1
        assert grader._pool.workers[0].process.pid == pid


def test_memory_is_bounded(stub: None) -> None:
    with Grader(workers=1, memory_limit_bytes=1 << 28) as grader:
        assert grader.score(boxed("fill", "x5"), ["5"] * 2).tolist() == [0, 1]
        assert grader.stats()["memory"] == 1


def test_a_worker_killed_from_outside_while_idle_or_busy(stub: None) -> None:
    with Grader(workers=1, timeout_s=20.0) as grader:
        grader.score(boxed("x5"), ["5"])
        os.kill(grader._pool.workers[0].process.pid, signal.SIGKILL)
        assert grader.score(boxed("xx5"), ["5"]).tolist() == [1]
        victim = grader._pool.workers[0].process.pid
        os.kill(victim, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        assert grader.score(boxed("xxx5"), ["5"]).tolist() == [1]
        assert grader.stats()["crashes"] == 0


def test_workers_ignore_ctrl_c(stub: None) -> None:
    with Grader(workers=1) as grader:
        grader.score(boxed("x5"), ["5"])
        pid = grader._pool.workers[0].process.pid
        os.kill(pid, signal.SIGINT)
        assert grader.score(boxed("xx5"), ["5"]).tolist() == [1]
        assert grader._pool.workers[0].process.pid == pid


def test_workers_hold_no_jax_though_the_parent_does(stub: None) -> None:
    import jax  # noqa: F401

    assert "jax" in sys.modules
    with Grader(workers=1) as grader:
        assert grader.score(boxed("modules"), ["5"]).tolist() == [1]


def test_close_leaves_no_process_and_no_file(stub: None) -> None:
    before = open_files()
    for _ in range(3):
        with Grader(workers=2, timeout_s=0.3) as grader:
            grader.score(boxed("x5", "hang", "xx6", "die"), ["5"] * 4)
            grader.score(boxed("x7"), ["7"])
            pids = [worker.process.pid for worker in grader._pool.workers]
            assert pids
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert open_files() == before
    grader.close()
    with pytest.raises(ValueError, match="closed"):
        grader.score(boxed("5"), ["5"])


def test_threads_take_turns() -> None:
    rewards: dict[int, list[float]] = {}
    with Grader(workers=2) as grader:

        def score(index: int) -> None:
            texts = boxed(rf"\frac{{{2 * index}}}{{2}}", f"{index}+1")
            rewards[index] = grader.score(texts, [index, index]).tolist()

        threads = [threading.Thread(target=score, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rewards == {index: [1.0, 0.0] for index in range(8)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers=0"),
        ({"timeout_s": 0.0}, "timeout_s=0"),
        ({"workers": 1.5}, "workers=1.5: .*whole number"),
        ({"workers": "2"}, "workers='2': .*whole number"),
        ({"workers": True}, "workers=True: .*whole number"),
        ({"timeout_s": float("inf")}, "timeout_s=inf"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"timeout_s": 1e12}, "timeout_s=1000000000000.0: .*at most 86400"),
        ({"timeout_s": "5"}, "timeout_s='5'"),
        ({"memory_limit_bytes": 1000}, "memory_limit_bytes=1000"),
        ({"memory_limit_bytes": 1e9}, "memory_limit_bytes=1000000000.0: .*whole number"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grader(**arguments)


def test_lengths_and_modes_are_checked() -> None:
    with Grader() as grader:
        with pytest.raises(ValueError, match="1 texts and 2 golds"):
            grader.score(["a"], ["1", "2"])
        with pytest.raises(ValueError, match="mode='both'"):
            grader.score(["a"], ["1"], mode="both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "golds", "message"),
    [
        ("abc", "abc", "texts='abc': expected a list"),
        (["a"], "1", "golds='1': expected a list"),
        (["a", None], ["1", "2"], r"texts\[1\]=None: a response is a text"),
        ([b"a"], ["1"], r"texts\[0\]=b'a'"),
    ],
)
def test_what_is_no_list_of_texts_is_named(texts: Any, golds: Any, message: str) -> None:
    with Grader() as grader:
        with pytest.raises(ValueError, match=message):
            grader.score(texts, golds, mode="eval")
        assert grader.stats()["graded"] == 0


def test_the_longest_deadline_can_be_kept() -> None:
    with Grader(workers=1, timeout_s=MAX_ANSWER_TIMEOUT_S, memory_limit_bytes=0) as grader:
        assert grader.score([r"\boxed{x^2+2x+1}"], ["(x+1)^2"], mode="eval").tolist() == [1.0]


def test_workers_that_cannot_start_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such grader')"]
    monkeypatch.setattr(pool_module, "worker_command", lambda *_: command)
    with Grader(workers=1) as grader, pytest.raises(RuntimeError, match="no such grader"):
        grader.score(boxed(r"\frac12"), ["5"])


# -- where it runs --------------------------------------------------------------------------------

SCORE = r"""
from polaris_jax.reward import Grader
def main():
    grader = Grader(workers=2)
    rewards = grader.score([r"</think>\boxed{\frac{10}{2}}", r"</think>\boxed{2\cdot 3}"], [5, 5])
    print(rewards.tolist())
    grader.close()
"""
PLACES = {
    "a script without a guard": SCORE + "main()",
    "a thread": SCORE + "import threading\nt = threading.Thread(target=main)\nt.start()\nt.join()",
    "a notebook's cell": "import threading\ncell = " + repr(SCORE + "main()") + "\n"
    "t = threading.Thread(target=exec, args=(cell, {'__name__': '__main__'}))\nt.start()\nt.join()",
    "an event loop": SCORE + "import asyncio\nasync def run():\n    main()\nasyncio.run(run())",
    "a script that forgets to close": SCORE.replace("grader.close()", "pass") + "main()",
}


def _run(arguments: list[str], directory: Path, text: str | None = None):
    return subprocess.run(
        [sys.executable, *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=directory,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("place", PLACES)
def test_works_from(place: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PLACES[place])
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user was imported')")
    (tmp_path / "elsewhere").mkdir()
    ran = _run(["-P", str(script)], tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[1.0, 0.0]\n", "")


def test_works_from_stdin(tmp_path: Path) -> None:
    ran = _run(["-"], tmp_path, text=SCORE + "main()\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[1.0, 0.0]\n", "")


PARENT = """
import sys, time
from polaris_jax.reward import grader as module
from polaris_jax.reward import pool
stub = {stub!r}
pool.worker_command = lambda *_: [sys.executable, "-c", stub]
grader = module.Grader(workers=2, timeout_s={timeout_s})
grader.score([r"</think>\\boxed{{x5}}", r"</think>\\boxed{{xx5}}"], ["5", "5"])
print(*[worker.process.pid for worker in grader._pool.workers], flush=True)
{then}
"""


def _parent(tmp_path: Path, timeout_s: float, then: str) -> tuple[subprocess.Popen, list[int]]:
    stub = STUB.format(root=str(ROOT), timeout_s=timeout_s, memory=0)
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(stub=stub, timeout_s=timeout_s, then=textwrap.dedent(then)))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    process, pids = _parent(tmp_path, 1.0, "time.sleep(60)")
    assert pids
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 5.0)


def test_a_parent_killed_in_the_middle_leaves_no_hanging_orphan(tmp_path: Path) -> None:
    hang = 'grader.score([r"</think>\\boxed{hang}"] * 1, ["5"])'
    process, pids = _parent(tmp_path, 1.5, hang)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 8.0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGXCPU"])
def test_a_signal_to_the_whole_run_costs_no_reward(name: str) -> None:
    with Grader(workers=1) as grader:
        assert grader.score(boxed(r"\frac{2}{4}"), ["0.5"]) == [1.0]
        (worker,) = grader._pool.workers
        worker.process.send_signal(getattr(signal, name))
        assert grader.score(boxed(r"\frac{3}{4}"), ["0.75"]) == [1.0]
        assert worker.process.poll() is None
        assert grader.stats()["crashes"] == 0


def test_ctrl_c_ends_the_parent_alone_and_quietly(tmp_path: Path) -> None:
    hang = 'grader.score([r"</think>\\boxed{hang}"], ["5"])'
    process, pids = _parent(tmp_path, 30.0, hang)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # its parent has ended it already
            os.kill(pid, signal.SIGINT)  # as a terminal would, were they in its group
    _, error = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT or process.returncode == 130
    assert error.count("KeyboardInterrupt") == 1
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 5.0)


def test_a_call_in_an_event_loop() -> None:
    async def score_all(grader: Grader) -> list:
        calls = [grader.score_async(boxed(rf"\frac{{{2 * n}}}{{2}}"), [n]) for n in range(6)]
        return await asyncio.gather(*calls)

    with Grader(workers=2) as grader:
        found = asyncio.run(score_all(grader))
    assert [rewards.tolist() for rewards in found] == [[1.0]] * 6


def test_layers_add_up_to_what_was_graded() -> None:
    answers = ["5", "6", r"\frac{10}{2}", r"\sqrt{26}", "5 cm", "x" * 7000]
    with Grader(workers=1) as grader:
        grades = grader.grade([*boxed(*answers), "no box"], ["5"] * 7)
        stats = grader.stats()
    layers = ["text", "number", "exact", "numeric", "exact", "length", "empty"]
    assert [grade.layer for grade in grades] == layers
    assert [grade.reward for grade in grades] == [1, 0, 1, 0, 1, 0, 0]
    assert all((grade.reason == "") == (grade.reward == 1.0) for grade in grades)
    counted = {name: n for name, n in stats.items() if name.startswith("layer/")}
    assert sum(counted.values()) == stats["graded"] == 7
    assert counted["layer/exact"] == 2


def test_presets_reach_the_workers() -> None:
    for preset, reward in (("strict", 0.0), ("default", 1.0)):
        with Grader(workers=1, preset=preset) as grader:
            assert grader.score(boxed(r"5\text{ cm}"), ["5"]).tolist() == [reward]
    with pytest.raises(ValueError, match="preset='loose'"):
        Grader(preset="loose")


def test_without_a_cache_every_pair_is_worked(stub: None) -> None:
    with Grader(workers=1, cache=False) as grader:
        for _ in range(3):
            grader.score(boxed("x5"), ["5"])
        assert grader.stats()["worked"] == 3


def test_a_stopped_worker_blocks_no_request(stub: None) -> None:
    """The golds fill the pipe of a worker that does not read: the deadline holds all the same."""
    golds = [str(index) * 1500 for index in range(64)]
    with Grader(workers=1, timeout_s=1.0) as grader:
        grader.score(boxed("x5"), ["5"])
        os.kill(grader._pool.workers[0].process.pid, signal.SIGSTOP)
        assert grader.score(boxed("x7"), [golds]).tolist() == [0.0]
        assert grader.stats()["timeouts"] == 1
        assert grader.score(boxed("xx5"), [["5", *golds]]).tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_answers_leak_nothing(stub: None) -> None:
    hangs = 0
    with Grader(workers=2, timeout_s=0.1) as grader:
        grader.score(boxed("x0"), ["0"])
        before = open_files()
        resident_bytes: list[int] = []
        for block in range(10):
            answers = [
                f"hang{block}-{index}" if index % 100 == 0 else f"x{index}"
                for index in range(10_000)
            ]
            hangs += 100
            grader._cache.clear()
            rewards = grader.score(boxed(*answers), [str(index) for index in range(10_000)])
            assert not rewards[::100].any()
            assert open_files() <= before + 2  # at most one worker more than at the start
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        assert resident_bytes[-1] < resident_bytes[1] + (1 << 26)
        stats = grader.stats()
    # So short a deadline hits an honest answer now and then on a loaded machine: counted, all.
    assert stats["timeouts"] >= hangs
    assert stats["correct"] == stats["graded"] - stats["timeouts"]
    assert stats["crashes"] == stats["errors"] == 0
