"""sympy's second opinion: in order, under the deadline, and a clear error without sympy."""

import contextlib
import importlib.util
import time

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.reward.audit import SecondOpinion, SympyAudit

ENDLESS = "10^{10^{10^{10}}} + \\sqrt{2}"


def test_verdicts_come_in_order_and_one_that_hangs_costs_its_deadline():
    with contextlib.closing(SympyAudit(2, 1.0, 1 << 30)) as audit:
        start_s = time.monotonic()
        found = audit.judge(
            ["1/2", None, ENDLESS, "3", "\\text{no}"], ["0.5", "1", "\\sqrt{3}", "4", "5"]
        )
        took_s = time.monotonic() - start_s
        assert audit.judge(["2"], ["2.0"]) == [SecondOpinion(True, "")]
    assert found[0] == found[1]._replace(equal=True) == SecondOpinion(True, "")
    assert found[1] == found[3] == SecondOpinion(False, "")
    assert found[2].equal is None and found[2].reason
    assert found[4].equal is None and found[4].reason.startswith("not compared as values")
    assert took_s < 30


def test_without_sympy_it_says_what_to_install(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sympy" else there(name)
    )
    with pytest.raises(ConfigError, match=r"--audit=sympy: sympy is not installed; pip install"):
        SympyAudit(1, 5.0, 0)


def test_a_sympy_that_does_not_load_is_said(monkeypatch, tmp_path):
    (tmp_path / "sympy.py").write_text("raise ImportError('broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"its worker does not start \(.*broken"):
        SympyAudit(1, 5.0, 0)
