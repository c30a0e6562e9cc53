"""The table of an ablation: which runs there are, and what is compared.

A table is a Python file with a `TABLE`:

    from polaris_jax.ablate import Arm, Table

    TABLE = Table(
        config="configs/tiny_cpu.py",
        overrides={"stages[0].steps": 60, "evaluate.every_steps": 5},
        bases={f"base{i}": {"warmstart.seed": i} for i in range(3)},
        arms=(
            Arm("plain", {"batch.rescue": False, "batch.substitute": False}),
            Arm("rescue", {"batch.substitute": False}),
        ),
        seeds=(0, 1),
    )

Each arm is run from each base with each seed. The first arm is the one that the others are compared
with. What a table compares is written down before its runs; a changed table needs another folder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from polaris_jax.config import ConfigError

BEFORE = ("prepare", "calibrate", "probe")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FIELD = re.compile(r"[a-z_]+(\[\d+\])?(\.[a-z_0-9]+(\[\d+\])?)*")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: name of its folder and of its row.
        overrides: config fields, such as {"batch.rescue": False}; they count after the base's.
        seeds: `seed` of each run; (): those of the table.
        before: commands that run in the workdir before training: prepare, calibrate, probe.
        config: config file, or FILE:TARGET; empty: the table's.
    """

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = ()
    before: Sequence[str] = ()
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a table.

    Attributes:
        arm: name of its arm.
        base: name of its base.
        seed: `seed` of its config.
        config: config file, or FILE:TARGET.
        overrides: config fields, without model.path of a base that is made on the spot.
        before: commands that run before training.
    """

    arm: str
    base: str
    seed: int
    config: str
    overrides: Mapping[str, Any]
    before: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder of its workdir, below the output folder."""
        return f"runs/{self.arm}/{self.base}-{self.seed}"

    def flags(self) -> list[str]:
        """Its config as words of a command line."""
        return [f"--config={self.config}", *flags(self.overrides)]


@dataclasses.dataclass(frozen=True)
class Table:
    """Arms, bases and seeds, and what is compared.

    Attributes:
        arms: the arms; the others are compared with the first.
        config: config file, or FILE:TARGET.
        overrides: config fields of every run.
        bases: {name: config fields of a base}. If a config makes its model by a warm start, each
            base is made once and shared by its runs.
        seeds: `seed` of the runs of each arm and base.
        figure: what is compared: "mean" is the mean of a run's held-out scores, "last" the last.
        collapsed_below: a run has collapsed if its last score is under this share of its base's.
    """

    arms: Sequence[Arm]
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bases: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"base": {}})
    seeds: Sequence[int] = (0,)
    figure: Literal["mean", "last"] = "mean"
    collapsed_below: float = 0.5

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        _require(len(names) > 0, "arms=(): needs at least one arm")
        twice = next((name for name in names if names.count(name) > 1), None)
        _require(twice is None, f"arms: the name {twice!r} occurs twice; give each arm its own")
        for name in (*names, *self.bases):
            _require(
                _NAME.fullmatch(name) is not None,
                f"{name!r}: a name of an arm or base is a folder's; take letters, digits, _, . and "
                "-",
            )
        _require(len(self.bases) > 0, "bases={}: needs at least one base")
        _require(self.figure in ("mean", "last"), f"figure={self.figure!r}: expected mean or last")
        for arm in self.arms:
            unknown = [command for command in arm.before if command not in BEFORE]
            _require(
                not unknown, f"arm {arm.name!r}: before={unknown}: expected {', '.join(BEFORE)}"
            )
        for fields in (self.overrides, *self.bases.values(), *(a.overrides for a in self.arms)):
            for field in fields:
                _require(
                    _FIELD.fullmatch(field) is not None and field != "seed",
                    f"{field!r}: expected a config field other than seed, like batch.rescue",
                )

    def base_run(self, base: str) -> Run:
        """The config that makes and scores a base."""
        return Run("", base, 0, self.config, {**self.overrides, **self.bases[base]}, ())

    def runs(self) -> list[Run]:
        """Every run: seed by seed, so that a table that is cut off has all arms."""
        seeds = {arm.name: tuple(arm.seeds or self.seeds) for arm in self.arms}
        places = [
            (number, base, arm)
            for number in range(max(map(len, seeds.values())))
            for base in self.bases
            for arm in self.arms
            if number < len(seeds[arm.name])
        ]
        return [
            Run(
                arm.name,
                base,
                seeds[arm.name][number],
                arm.config or self.config,
                {
                    **self.overrides,
                    **self.bases[base],
                    **arm.overrides,
                    "seed": seeds[arm.name][number],
                },
                tuple(arm.before),
            )
            for number, base, arm in places
        ]


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """Config fields as `--config.FIELD=VALUE`."""
    return [f"--config.{field}={_text(value)}" for field, value in overrides.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"({','.join(map(str, value))})"
    return str(value)


def _require(ok: bool, text: str) -> None:
    if not ok:
        raise ConfigError(text)
