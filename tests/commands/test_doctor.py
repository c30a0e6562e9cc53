"""`polaris doctor`: what is here, what is lacking, and that it says so in place of failing."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax.__main__ import main
from polaris_jax.commands import doctor
from polaris_jax.system import machine

ROOT = Path(__file__).resolve().parents[2]


def lines_of(check):
    return [f"{finding.mark} {finding.text}" for finding in check()]


@pytest.fixture
def quick(monkeypatch):
    """Children that answer at once."""
    answers = {doctor.DEVICES: ["cpu", "cpu", 1, None], doctor.SELF_TEST: [1.0, 1e-7, True]}
    monkeypatch.setattr(doctor, "_child", lambda body, timeout_s: (answers[body], ""))
    return answers


def test_a_sound_machine_is_ready(quick, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("ready\n")
    assert "devices: 1 x cpu (cpu)" in out
    assert "BROKEN" not in out


@pytest.mark.parametrize(
    "answer", [[1.0, 0.5, True], [1.0, 1e-7, False]], ids=["log-probs", "grading"]
)
def test_a_self_test_with_a_wrong_result_is_broken(quick, answer, capsys):
    quick[doctor.SELF_TEST] = answer
    assert main(["doctor"]) == 1
    assert "BROKEN self test" in capsys.readouterr().out


def test_the_children_do_what_they_say():
    found, failed = doctor._child(doctor.DEVICES, 300)
    assert failed == "" and found[0] == "cpu"
    (took_s, gap, graded), failed = doctor._child(doctor.SELF_TEST, 300)
    assert failed == ""
    assert took_s > 0 and gap < 1e-4 and graded is True


def test_a_file_of_the_users_takes_no_modules_place(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    body = "import json, random, polaris_jax; print(json.dumps([1]))"
    assert doctor._child(body, 60) == ([1], "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys; sys.exit('no driver')", "no driver"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9: too little memory?"),
        ("import time; time.sleep(60)", "no answer in 0.5 s"),
    ],
    ids=["fails", "killed", "hangs"],
)
def test_a_child_that_fails_is_a_line(body, said):
    found, failed = doctor._child(body, 0.5 if "sleep" in body else 60)
    assert found is None
    assert said in failed


def test_a_missing_package_is_broken_and_another_version_a_note(monkeypatch):
    needs = ["numpy>=2.0,<3", "not-there>=1,<2", "absl-py>=99", "torch; extra == 'golden'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: needs)
    found = lines_of(doctor.versions)
    assert "broken not-there is not installed: pip install 'not-there>=1,<2'" in found
    assert any(line.startswith("note absl-py") and ">=99 was" in line for line in found)
    assert not any("torch" in line for line in found)


def test_without_a_compiler_and_a_home(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = lines_of(doctor.compiler)
    assert found[0].startswith("note no C++ compiler (c++, g++, clang++)")
    assert found[1].startswith("note no cache of compiled code (Not a directory")
    assert "set XDG_CACHE_HOME" in found[1]


def test_a_compiler_with_arguments_is_found(monkeypatch, tmp_path):
    (tmp_path / "ccache").write_text("")
    (tmp_path / "ccache").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "ccache g++")
    assert lines_of(doctor.compiler)[0] == f"ok compiler: {tmp_path / 'ccache'}"


def test_unused_accelerators_are_named(quick, monkeypatch):
    monkeypatch.setattr(doctor, "_has_nvidia", lambda: True)
    assert any("polaris_jax[cuda12]" in line for line in lines_of(doctor.devices))
    quick[doctor.DEVICES] = ["gpu", "NVIDIA H100", 8, 80 << 30]
    assert lines_of(doctor.devices) == ["ok devices: 8 x NVIDIA H100 (gpu), 80.0 GiB each"]


def test_with_little_memory_it_says_so_and_ends_by_itself():
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    done = subprocess.run(
        [sys.executable, "-m", "polaris_jax", "doctor"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "memory: 1.0 GiB" in done.stdout
    assert "the small configs need 2 GiB" in done.stdout
    assert done.stdout.splitlines()[-1] in ("ready", "something that every run needs is broken")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_limit_of_all_control_groups_around_a_process_counts(version, tmp_path):
    controller, name = ("memory", "memory.limit_in_bytes") if version == 1 else ("", "memory.max")
    top = tmp_path / "cgroup" / controller
    job = top / "slurm" / "job_7"
    job.mkdir(parents=True)
    (job / name).write_text("8000000000\n")
    (top / "slurm" / name).write_text("max\n")
    (top / "others").mkdir()
    (top / "others" / name).write_text("5\n")
    own = tmp_path / "self"
    line = "4:memory,hugetlb:/slurm/job_7" if version == 1 else "0::/slurm/job_7"
    own.write_text(f"9:cpu:/others\n{line}\n")
    found = machine.cgroup_texts(name, controller, root=tmp_path / "cgroup", own=own)
    assert sorted(found) == ["8000000000", "max"]
    assert machine.cgroup_texts(name, controller, root=tmp_path, own=tmp_path / "none") == []


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_a_containers_share_of_the_processors_counts(text, cores, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "cgroup_texts", lambda name: ["max 100000", text])
    assert machine.core_count() == cores
    monkeypatch.setattr(machine, "cgroup_texts", lambda name: ["max 100000"])
    assert machine.core_count() == 64
