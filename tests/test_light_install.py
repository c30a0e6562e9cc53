"""Where only numpy and mpmath are installed: what works, and what the rest says.

The processes that the tests start, and their children, find no other package: a `sitecustomize`
refuses them as if they were not there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKER = """
import sys
from importlib.machinery import PathFinder

HERE = {"numpy", "mpmath", "polaris_jax"}


class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.split(".")[0]
        if top in HERE or top in sys.stdlib_module_names:
            return super().find_spec(name, path, target)
        return None


sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(BLOCKER)
    rows = [{"problem_id": f"p{n}", "text": f"\\boxed{{{n}}}"} for n in range(3)]
    rows[2]["text"] = "\\boxed{\\frac{4}{2}}"
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {"p0": "0", "p1": "7", "p2": "2"}
    golds = [{"id": name, "problem": f"{name}?", "answer": a} for name, a in answers.items()]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in golds))
    return folder


def polaris(folder, *words):
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "polaris_jax", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_nothing_else_is_there(folder):
    done = polaris(folder, "train", "--config=tiny_cpu", "--workdir=run")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not installed; `polaris doctor` lists what is missing" in done.stderr


def test_grade_works(folder):
    words = ["grade", "--input=responses.jsonl", "--problems=problems.jsonl", "--out=out.jsonl"]
    done = polaris(folder, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 rows, 2 correct" in done.stdout
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [1.0, 0.0, 1.0]
    assert rows[2]["layer"] == "exact"  # by a worker


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["grade", "--explain", r"\frac{2}{4}", "0.5"], 0, "exact        equal"),
        (["grade", "--help"], 0, "--timeout_s   deadline of one answer, in seconds (default 5.0)"),
        (["grade", "--inptu=x"], 2, "did you mean --input?"),
        (["grade", "--workers=0"], 2, "flag --workers=0: 0 is not a positive integer"),
        (["grade", "--input=gs://b/x", "--out=y"], 2, "needs the package gcsfs"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_its_flags_work(folder, words, status, said):
    done = polaris(folder, *words)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_audit_says_what_to_install(folder):
    words = ["grade", "--input=responses.jsonl", "--problems=problems.jsonl", "--out=b.jsonl"]
    done = polaris(folder, *words, "--audit=sympy")
    assert done.returncode == 2
    assert "--audit=sympy: sympy is not installed; pip install 'sympy>=1.13'" in done.stderr


def test_doctor_lists_what_is_missing(folder):
    done = polaris(folder, "doctor")
    assert done.returncode == 1
    assert "BROKEN jax finds no device: ModuleNotFoundError: No module named 'jax'" in done.stdout
    assert done.stdout.endswith("something that every run needs is broken\n")
    assert "Traceback" not in done.stderr
