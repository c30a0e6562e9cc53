"""A stand-in for the package wandb: keeps what it is called with."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest


class Error(Exception):
    """The base of W&B's errors."""


class UsageError(Error):
    """A mistake in the settings."""


class AuthenticationError(Error):
    """A wrong key."""


class CommError(Error):
    """A server that cannot be reached."""


class FakeRun:
    """What `wandb.init` returns."""

    def __init__(self, **begun: Any) -> None:
        self.begun, self.id = begun, begun["id"]
        self.metrics: dict[str, dict[str, Any]] = {}
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def define_metric(self, name: str, **how: Any) -> None:
        self.metrics[name] = how

    def log(self, values: dict[str, Any]) -> None:
        assert not self.finished
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True

    @property
    def numbers(self) -> list[dict[str, Any]]:
        """The logged numbers, without the tables."""
        return [line for line in self.logged if not any(map(is_table, line.values()))]

    @property
    def tables(self) -> dict[str, list[tuple[int, Any]]]:
        """{name: [(step, table)]}."""
        found: dict[str, list[tuple[int, Any]]] = {}
        for line in self.logged:
            for name, value in line.items():
                if is_table(value):
                    found.setdefault(name, []).append((line["step"], value))
        return found


class FakeTable:
    """What `wandb.Table` makes."""

    def __init__(self, *, columns: list[str], data: list[list[Any]]) -> None:
        assert all(len(row) == len(columns) for row in data)
        self.columns, self.data = columns, data


def is_table(value: Any) -> bool:
    """True for a `FakeTable`."""
    return isinstance(value, FakeTable)


def install(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Puts the stand-in where `import wandb` finds it; the list gets every run that begins."""
    runs: list[FakeRun] = []

    def init(**begun: Any) -> FakeRun:
        runs.append(FakeRun(**begun))
        return runs[-1]

    fake: Any = types.ModuleType("wandb")
    fake.init, fake.Table = init, FakeTable
    fake.errors = types.SimpleNamespace(
        UsageError=UsageError, AuthenticationError=AuthenticationError, CommError=CommError
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    real = importlib.util.find_spec  # epath remembers for a process what it says of tensorflow

    def find_spec(name: str, package: str | None = None) -> Any:
        return fake if name == "wandb" else real(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return runs
