"""A probe says how many samples its zones rest on where these are few."""

import contextlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath

from polaris_jax.config import build_config
from polaris_jax.data.problem_sets import ProblemSet
from polaris_jax.explore.zones import MIN_SAMPLES
from polaris_jax.measure import probe as probe_module
from polaris_jax.measure.inputs import Measured
from polaris_jax.measure.weights import Weights
from polaris_jax.records import Problem
from polaris_jax.stages.health import Health
from polaris_jax.system.progress import Progress

PROBLEMS = [Problem(f"p{i}", "?", "1") for i in range(64)]
FOUND = ProblemSet(PROBLEMS, "", "a list", "given", None)


class NoWeights(Weights):
    """The base model, which is not loaded."""

    def load(self, *_: Any) -> Any:
        return None


class Said:
    """What a person reads."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def phase(self, name: str, total: int):
        with Progress(enabled=False).phase(name, total) as quiet:
            yield quiet


def solve(problems: list[Problem], *, n: int, **_: Any) -> SimpleNamespace:
    """Half of all responses are right, at every temperature."""
    right_PR = np.tile(np.arange(n) % 2, (len(problems), 1)).astype(np.float32)
    texts = [["a b c d"] * n for _ in problems]
    return SimpleNamespace(
        texts=texts,
        correct_PR=right_PR,
        response_tokens=4 * right_PR.size,
        logprobs=[[(-0.5,) * 4] * n for _ in problems],
        finish_reasons=[["stop", "length"] * (n // 2) for _ in problems],
        failed=None,
    )


def test_errors_as_large_as_a_zone_are_doubted():
    """Of such a sweep the suggestion was once 1.6, at which nothing was learned in 200 steps."""
    fields: Any = {"problems": 32, "n": 64, "tolerance": 0.14}
    assert probe_module.doubts([0.70, 0.69, 0.5], [0.02, 0.02, 0.02], **fields) is None
    said = probe_module.doubts([0.102, 0.07, 0.086], [0.015, 0.023, 0.024], **fields)
    assert said is not None
    assert said.startswith("the standard error, 2.3%, is 23% of the best accuracy, 10.2%")
    few = probe_module.doubts([0.102, 0.07], [0.02, 0.03], **fields | {"n": 4})
    assert few is not None
    assert few.startswith("128 samples a temperature (32 problems x 4): zone borders from fewer")
    assert "; the standard error" in few


@pytest.mark.parametrize(("n", "noted"), [(32, False), (16, True)], ids=["enough", "few"])
def test_few_samples_are_noted_in_the_file_and_to_the_reader(tmp_path, monkeypatch, n, noted):
    for name, stand_in in {
        "measured_on": lambda *_, **__: Measured(FOUND, PROBLEMS, None, {}, {}, {}, NoWeights()),
        "open_policy": lambda *_, **__: contextlib.nullcontext(
            SimpleNamespace(solve=solve, judged=lambda *_, **__: Health(64, 64, 64 * n, 0.5))
        ),
        "probe_figure": lambda *_: None,
    }.items():
        monkeypatch.setattr(probe_module, name, stand_in)
    probe = {"n": n, "start": 0.1, "stop": 0.3, "step": 0.1}
    config = build_config({"model": {"dtype": "float32"}, "probe": probe})
    said: Any = Said()
    summary = probe_module.probe(config, epath.Path(tmp_path), progress=said)
    assert (64 * n < MIN_SAMPLES) == noted
    notes = [line.removeprefix("note: ") for line in said.lines if line.startswith("note: ")]
    assert notes == ([summary["note"]] if noted else [])
    if noted:
        assert summary["note"].startswith("1024 samples a temperature (64 problems x 16)")
        assert "fewer than 2048 are uncertain" in summary["note"]
    assert json.loads((tmp_path / "probe.json").read_text())["note"] == summary["note"]
