"""The guard between the runtime's stderr and ours, in processes that end by abort."""

import subprocess
import sys

import pytest

from polaris_jax.system.peer_loss import tells_of_peer_loss

ENTRY = "E1124 10:00:00.000000    4711 {file}:77] {text}"
FATAL = (
    "Polled an error from the service: absl::Status: UNAVAILABLE: task 1 is gone. "
    "The distributed service detected fatal errors"
)


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A process with a guard; `log` writes to file descriptor 2 as the C++ runtime does."""
    script = f"""
import os, sys, time
from polaris_jax.system.peer_loss import Guard
guard = Guard()
def log(line):
    os.write(2, (line + chr(10)).encode())
    time.sleep(0.05)
{body}
"""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def entry(file: str, text: str) -> str:
    return ENTRY.format(file=file, text=text)


def test_ordinary_lines_pass_and_the_process_ends_as_it_would():
    other = entry("pjrt_client.cc", "slow operation")
    done = run(f"log('plain'); log({other!r}); print('mine', file=sys.stderr); sys.exit(7)")
    assert done.returncode == 7
    assert sorted(done.stderr.splitlines()) == sorted(["plain", other, "mine"])


def test_an_abort_after_the_news_is_one_line_and_status_1():
    news = [entry("coordination_service_agent.cc", "heartbeat failed"), "  more of that entry"]
    news.append(entry("client.h", f"Terminating: absl::Status: {FATAL}"))
    done = run("".join(f"log({line!r})\n" for line in news) + "os.abort()")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: lost another process of this run (")
    assert "rerun the same command" in line
    assert "heartbeat" not in line


def test_another_abort_takes_its_course_and_brings_out_what_was_held():
    held = entry("preemption_sync_manager.cc", "notice")
    done = run(f"log({held!r}); os.abort()")
    assert done.returncode == -6  # SIGABRT
    assert held in done.stderr.splitlines()
    assert "lost another process" not in done.stderr


def test_end_tells_the_first_reason_only():
    done = run(
        "import threading\n"
        "threads = [threading.Thread(target=guard.end, args=(f'reason {i}',)) for i in range(4)]\n"
        "[t.start() for t in threads]; time.sleep(5)"
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4"), True),
        (RuntimeError("NCCL operation ncclAllReduce failed: unhandled system error"), True),
        (ValueError("shapes (2,) and (3,) differ"), False),
    ],
    ids=["gloo", "nccl", "other"],
)
def test_the_text_of_an_error_tells(error, lost):
    assert tells_of_peer_loss(error) is lost


def test_the_cause_of_an_error_tells_too():
    error = RuntimeError("step failed")
    error.__cause__ = ValueError("Heartbeat timed out")
    assert tells_of_peer_loss(error)
