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

If the table has a `Tuning`, each arm is compared at its best: it is first run with each value, on
bases and seeds that are not counted, and its counted runs take the value with the best figure.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
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
        tokens_of: name of another arm. A run then ends once it has sampled as many tokens as that
            arm's run of the same base and seed, commands before training and that arm's temperature
            resets included; its own resets come on top, and its steps must suffice.
        tuned_as: name of another arm whose tuned value this one takes; empty: it is tuned itself.
        against: name of the arm that it is compared with; empty: the first; None: with none.
    """

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = ()
    before: Sequence[str] = ()
    config: str = ""
    tokens_of: str = ""
    tuned_as: str = ""
    against: str | None = ""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Which value each arm is given, found on bases that are not counted.

    Attributes:
        field: the config field that is tuned, such as optimizer.learning_rate.
        values: its values.
        bases: {name: config fields of a base}, none of them a counted one.
        seeds: `seed` of the runs of each arm, value and base.
    """

    field: str
    values: Sequence[Any]
    bases: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int] = (0,)


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
        value: the value of the tuned field that it tries; None for a run that is counted.
        needs: names of the runs that must have ended before it.
        tokens_of: arm whose run of the same base and seed says how many tokens it may sample.
    """

    arm: str
    base: str
    seed: int
    config: str
    overrides: Mapping[str, Any]
    before: tuple[str, ...]
    value: Any = None
    needs: tuple[str, ...] = ()
    tokens_of: str = ""

    @property
    def counted(self) -> bool:
        """False for a run that only serves to choose a value."""
        return self.value is None

    @property
    def budget_run(self) -> str:
        """The name of the run that says how many tokens it may sample."""
        return dataclasses.replace(self, arm=self.tokens_of).name

    @property
    def name(self) -> str:
        """The folder of its workdir, below the output folder."""
        if self.counted:
            return f"runs/{self.arm}/{self.base}-{self.seed}"
        return f"tuning/{self.arm}/{self.value}/{self.base}-{self.seed}"

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
        tuning: how each arm is given its best value of one field; None: no field is tuned.
        train: False: nothing is trained, and a run is `polaris evaluate` of its base with the arm's
            fields, for a table of ways to sample.
        evaluate: True: `polaris evaluate` scores each counted run's last weights, and keeps its
            responses in the workdir.
        notes: a function of the output folder, called at the end; what it returns is added to
            ablations.md.
        figure: what is compared: "mean" is the mean of a run's held-out scores, "last" the last.
        collapsed_below: a run has collapsed if its last score is under this share of its base's.
    """

    arms: Sequence[Arm]
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bases: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"base": {}})
    seeds: Sequence[int] = (0,)
    tuning: Tuning | None = None
    train: bool = True
    evaluate: bool = False
    notes: Callable[[Any], str] | None = None
    figure: Literal["mean", "last"] = "mean"
    collapsed_below: float = 0.5

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        _require(len(names) > 0, "arms=(): needs at least one arm")
        twice = next((name for name in names if names.count(name) > 1), None)
        _require(twice is None, f"arms: the name {twice!r} occurs twice; give each arm its own")
        tuning_bases = () if self.tuning is None else tuple(self.tuning.bases)
        counted = next((name for name in tuning_bases if name in self.bases), None)
        _require(counted is None, f"tuning.bases: {counted!r} is counted; tune on other bases")
        for arm in self.arms:
            for field in ("tokens_of", "tuned_as", "against"):
                other = getattr(arm, field)
                _require(
                    not other or (other in names and other != arm.name),
                    f"arm {arm.name!r}: {field}={other!r}: there is no such other arm",
                )
        by_name = {arm.name: arm for arm in self.arms}
        for arm in self.arms:
            other = by_name.get(arm.tokens_of)
            _require(
                other is None or not (other.tokens_of or (other.tuned_as and not arm.tuned_as)),
                f"arm {arm.name!r}: tokens_of={arm.tokens_of!r}: that arm's runs depend on others; "
                "name an arm without tokens_of and tuned_as",
            )
            tuned = by_name.get(arm.tuned_as)
            _require(
                tuned is None or not tuned.tuned_as,
                f"arm {arm.name!r}: tuned_as={arm.tuned_as!r}: that arm is not tuned itself",
            )
            own = self.seeds_of(arm)
            _check_seeds(f"arm {arm.name!r}: seeds", own)
            alone = [] if other is None else [s for s in own if s not in self.seeds_of(other)]
            _require(
                not alone,
                f"arm {arm.name!r}: tokens_of={arm.tokens_of!r}: that arm has no run with seeds "
                f"{alone}, which would be waited for; give both arms the same seeds",
            )
        for name in (*names, *self.bases, *tuning_bases):
            _require(
                _NAME.fullmatch(name) is not None,
                f"{name!r}: a name of an arm or base is a folder's; take letters, digits, _, . and "
                "-",
            )
        _require(len(self.bases) > 0, "bases={}: needs at least one base")
        _require(
            self.train or not (self.tuning or any(a.tokens_of or a.before for a in self.arms)),
            "train=False: nothing is trained, so no arm has tuning, tokens_of or before",
        )
        _require(self.figure in ("mean", "last"), f"figure={self.figure!r}: expected mean or last")
        for arm in self.arms:
            unknown = [command for command in arm.before if command not in BEFORE]
            _require(
                not unknown, f"arm {arm.name!r}: before={unknown}: expected {', '.join(BEFORE)}"
            )
        places = [self.overrides, *self.bases.values(), *(a.overrides for a in self.arms)]
        if self.tuning is not None:
            _check_tuning(self.tuning)
            places += [{self.tuning.field: self.tuning.values[0]}, *self.tuning.bases.values()]
        for fields in places:
            for field, value in fields.items():
                _require(
                    _FIELD.fullmatch(field) is not None and field != "seed",
                    f"{field!r}: expected a config field other than seed, like batch.rescue",
                )
                _require(value is not None, f"{field}=None: a config has no None; name a value")

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """`seed` of the runs of an arm and base."""
        return tuple(arm.seeds or self.seeds)

    @property
    def all_bases(self) -> dict[str, Mapping[str, Any]]:
        """The counted bases and those of the tuning."""
        return {**(self.tuning.bases if self.tuning else {}), **self.bases}

    def against(self, arm: Arm) -> str | None:
        """The name of the arm that `arm` is compared with; None if with none."""
        first = self.arms[0].name
        return (arm.against or first) if arm.against is not None and arm.name != first else None

    def base_run(self, base: str) -> Run:
        """The config that makes and scores a base."""
        return Run("", base, 0, self.config, {**self.overrides, **self.all_bases[base]}, ())

    def runs(self) -> list[Run]:
        """Every counted run: seed by seed, so that a table that is cut off has all arms."""
        seeds = {arm.name: self.seeds_of(arm) for arm in self.arms}
        tried = self.tuning_runs()
        return [
            self._run(arm, base, seeds[arm.name][number], tried=tried)
            for number in range(max(map(len, seeds.values())))
            for base in self.bases
            for arm in self.arms
            if number < len(seeds[arm.name])
        ]

    def tuning_runs(self) -> list[Run]:
        """Every run that serves to choose a value."""
        if self.tuning is None:
            return []
        return [
            self._run(arm, base, seed, value)
            for base in self.tuning.bases
            for seed in self.tuning.seeds
            for arm in self.arms
            if not arm.tuned_as
            for value in self.tuning.values
        ]

    def _run(
        self, arm: Arm, base: str, seed: int, value: Any = None, tried: Sequence[Run] = ()
    ) -> Run:
        own = {} if value is None or self.tuning is None else {self.tuning.field: value}
        run = Run(
            arm.name,
            base,
            seed,
            arm.config or self.config,
            {**self.overrides, **self.all_bases[base], **arm.overrides, **own, "seed": seed},
            tuple(arm.before),
            value=value,
            tokens_of=arm.tokens_of,
        )
        needs = []
        if arm.tokens_of:
            needs.append(run.budget_run)
        if value is None:
            tuned = arm.tuned_as or arm.name
            needs += [other.name for other in tried if other.arm == tuned]
        return dataclasses.replace(run, needs=tuple(needs))


def load_table(path: str) -> Table:
    """The TABLE of a Python file, which is run.

    Raises:
        ConfigError: there is no such file, it fails, or it has no TABLE.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: there is no such file; name one with a TABLE")
    spec = importlib.util.spec_from_file_location("polaris_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001  # whatever a file of Python may do
        raise ConfigError(f"{path}: {type(error).__name__}: {error}; mend the file") from None
    table = getattr(module, "TABLE", None)
    if not isinstance(table, Table):
        raise ConfigError(f"{path}: has no TABLE = Table(...); see polaris_jax/ablate/table.py")
    return table


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """Config fields as `--config.FIELD=VALUE`."""
    return [f"--config.{field}={_text(value)}" for field, value in overrides.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"({','.join(map(str, value))})"
    return str(value)


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
    """Raises ConfigError unless `seeds` are one or more whole numbers, each of them once."""
    _require(len(seeds) > 0, f"{name}=(): needs at least one seed")
    _require(
        len(set(seeds)) == len(seeds) and all(type(seed) is int for seed in seeds),
        f"{name}={tuple(seeds)}: expected whole numbers, each of them once",
    )


def _check_tuning(tuning: Tuning) -> None:
    """Raises ConfigError for a tuning without a value, base or seed, or with a value twice."""
    _require(len(tuning.values) > 0, "tuning.values=(): needs at least one value")
    _require(len(tuning.bases) > 0, "tuning.bases={}: needs at least one base")
    _check_seeds("tuning.seeds", tuning.seeds)
    for value in tuning.values:
        _require(
            isinstance(value, int | float)
            or (isinstance(value, str) and _NAME.fullmatch(value) is not None),
            f"tuning.values: {value!r} is a folder's name, too; take numbers or plain words",
        )
    _require(
        len(set(tuning.values)) == len(tuning.values),
        f"tuning.values={tuple(tuning.values)}: a value occurs twice; name each of them once",
    )


def _require(ok: bool, text: str) -> None:
    if not ok:
        raise ConfigError(text)
