"""What is installed where: make targets, requirements, constraints, the Dockerfile, the release."""

import fnmatch
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support import docker_steps
from tests.support.lower_bounds import lower_bound, requirements, too_new

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = requirements((ROOT / "requirements.txt").read_text())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def installs(target):
    """The install lines that `make TARGET` would run where there is no .venv yet."""
    done = subprocess.run(
        ["make", "-n", "VENV=/none/venv", target],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if re.search(r"pip\b.* install", line)]


def test_the_demo_installs_what_it_needs():
    lines = installs("demo")
    assert len(lines) == 2
    left_out = re.compile(re.search(r"grep -vE '(.*?)'", lines[0])[1])
    text = (ROOT / "requirements.txt").read_text()
    assert {line.split(">")[0] for line in text.splitlines() if left_out.search(line)} == {
        "gguf",
        "sympy",
    }
    assert not re.search("jetstream|smollm2|dev", " ".join(lines))


def test_the_tests_install_jetstream_and_never_skip_its_driver():
    lines = installs("test")
    assert any("--no-deps" in line and "requirements-jetstream.txt" in line for line in lines)
    test = (ROOT / "tests/rollout/test_jetstream.py").read_text()
    assert "def test_the_driver_gets_the_tokens_that_our_scheduler_gets" in test
    assert "skip" not in test
    requirements_text = (ROOT / "requirements.txt").read_text()
    assert re.search(r"^# google-jetstream .*requirements-jetstream.txt", requirements_text, re.M)


def test_each_package_says_what_it_is_for():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not re.match(r"(#|[\w\[\]-]+>=\S+  # \w)", line)] == []
    for requirement in REQUIREMENTS.values():
        assert {one.operator for one in requirement.specifier} == {">=", "<"}, requirement


def test_the_tests_have_what_the_server_needs():
    assert set(EXTRAS["serve"]) <= set(EXTRAS["dev"])


@pytest.mark.parametrize("extra", ["hub", "gcs", "s3", "tpu", "cuda12", "cuda13", "wandb", "serve"])
def test_the_extras(extra):
    for line in EXTRAS[extra]:
        if (made := Requirement(line)).name == "jax":
            assert made.specifier == REQUIREMENTS["jax"].specifier


def test_the_constraints_fit_the_requirements():
    pinned = requirements((ROOT / "constraints.txt").read_text())
    names = {name.lower().replace("_", "-"): made for name, made in REQUIREMENTS.items()}
    for name, made in names.items():
        (version,) = (one.version for one in pinned[name].specifier if one.operator == "==")
        assert made.specifier.contains(version), (name, version)
    assert not {"torch", "tensorflow", "google-jetstream"} & set(pinned)


def test_a_package_that_is_newer_than_its_bound_is_named():
    assert str(lower_bound(Requirement("a>=1.2,<3"))) == "1.2"
    assert too_new("numpy>=2.0,<3  # arrays")[0].startswith("numpy: ")
    assert too_new("numpy>=99  # arrays") == []


# ---- the Dockerfile

STAGES = docker_steps.stages((ROOT / "Dockerfile").read_text())
TARGETS = ("cpu", "cuda", "tpu")


def is_ignored(path):
    """Whether .dockerignore keeps a path out: the last pattern that fits decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and fnmatch.fnmatch(path, pattern):
            ignored = not line.startswith("!")
    return ignored


def test_each_file_that_is_copied_exists_and_reaches_the_build():
    sources = []
    for stage in STAGES.values():
        for other, names, _ in docker_steps.copied(stage.steps):
            assert other in {"", *STAGES}
            sources += names if not other else []
    assert len(sources) > 5
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert [name for name in sources if is_ignored(name)] == []
    for name in (".git", ".venv", "workdirs", "tests", ".env"):
        assert is_ignored(name)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_polaris_without_root(target):
    steps = docker_steps.complete(STAGES, target)
    users = [step.rest for step in steps if step.word == "USER"]
    assert users == ["polaris"]
    after = steps[[step.word for step in steps].index("USER") :]
    assert not [step for step in after if step.word in ("RUN", "COPY")]
    assert [step.rest for step in steps if step.word == "ENTRYPOINT"] == ['["polaris"]']


def test_the_images_are_small_and_hold_no_secret():
    assert {s.base for s in STAGES.values()} == {"python:3.11-slim", "base"}
    steps = [step for stage in STAGES.values() for step in stage.steps]
    for step in steps:
        if step.word in ("ENV", "ARG"):
            assert not re.search("(?i)token|secret|password|key", step.rest)
        if step.word == "RUN" and "apt-get install" in step.rest:
            assert "--no-install-recommends" in step.rest and "rm -rf /var/lib/apt" in step.rest
        if step.word == "RUN" and "pip install" in step.rest:
            assert "-c /wheels/constraints.txt" in step.rest


def test_the_accelerators_extras_are_ours():
    used = re.findall(r"\.whl\)\[([\w,]+)\$?(?:CUDA)?\]", (ROOT / "Dockerfile").read_text())
    assert used == ["cuda", "tpu,gcs"]
    assert re.search(r"ARG CUDA=12\n", (ROOT / "Dockerfile").read_text())
    assert {"cuda12", "cuda13", "tpu", "gcs"} <= set(EXTRAS)


# ---- the release


def test_a_release_is_made_by_hand_only():
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert list(workflow[True]) == ["workflow_dispatch"]  # YAML reads `on` as true
    assert workflow[True]["workflow_dispatch"]["inputs"]["publish"]["default"] is False
    assert workflow["jobs"]["publish"]["if"] == "inputs.publish"
    assert "secrets" not in (ROOT / ".github/workflows/release.yml").read_text()
    assert any("make dist" in step.get("run", "") for step in workflow["jobs"]["build"]["steps"])
