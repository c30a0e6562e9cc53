"""Is a run inside the band of recorded seeds of its config?

`configs/expected/NAME.json` has what recorded runs of a config gave, one value a seed, and the band
in which a run of another seed is expected. Such files come with the package, as the configs do.
`launch/expected_curve.py` makes them. Only reads.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from polaris_jax.config import SETTINGS, declared_name
from polaris_jax.config.settings import YES
from polaris_jax.config.shipped import shipped_folder
from polaris_jax.run.standing import read_standing, tail_lines
from polaris_jax.system.foreign import RECORD_BYTES, ForeignFileError, read_json

EXPECTED = "expected"  # folder among the configs
GAIN = "gain"  # `Band.name` of the last evaluation's avg@k less that of the base model
# Settings of a score that a resume may change.
EVALUATION = ("problems", "n", "temperature", "top_k", "top_p", "max_response_tokens", "yarn")
# Settings that name files, which lie elsewhere on each machine: the inputs in run.json whose digest
# stands for them, the first that is there. A warm start's weights differ by machine in their last
# bits, its settings do not.
FILES = {"model.path": ("warm start", "weights"), "data.shots": ("prompt token ids",)}
# Fields of two eval.json that must agree for a gain.
ALIKE = (
    *("k", "problems", "temperature", "top_k", "top_p", "max_response_tokens"),
    *("seed", "rope", "correct_at"),
)


@dataclasses.dataclass(frozen=True)
class Band:
    """What recorded seeds gave for one number, and where another seed's is expected.

    Attributes:
        name: a metric of metrics.jsonl, or GAIN.
        first_step: first step of those whose mean is the number.
        last_step: last one.
        values: the number in each recorded run, in the order of `Reference.seeds`.
        low: lower end of the band.
        high: upper end.
    """

    name: str
    first_step: int
    last_step: int
    values: tuple[float, ...]
    low: float
    high: float

    @property
    def title(self) -> str:
        """What a person calls the number."""
        if self.name == GAIN:
            return f"gain after {self.last_step + 1} steps"
        if self.first_step == self.last_step:
            return f"{self.name} of step {self.last_step}"
        return f"{self.name} of steps {self.first_step} to {self.last_step}"


@dataclasses.dataclass(frozen=True)
class Reference:
    """Recorded runs of a config.

    Attributes:
        config: name of the config, with its target if it has one, as in demo:plain.
        seeds: their seeds.
        commit: commit that they ran at.
        date: when.
        machine: on what.
        source: where their numbers come from.
        level: how often all numbers of a run of another seed lie in their bands.
        fields: {setting: value} of each setting that decides a run and is not the default, without
            seeds.
        evaluation: {setting: value} of those that decide a score.
        bands: the numbers.
    """

    config: str
    seeds: tuple[int, ...]
    commit: str
    date: str
    machine: str
    source: str
    level: float
    fields: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    bands: tuple[Band, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A run beside the recorded ones.

    Attributes:
        reference: the recorded runs.
        values: the run's number for each band; None: not there yet.
    """

    reference: Reference
    values: tuple[float | None, ...]

    @property
    def known(self) -> list[tuple[Band, float]]:
        """The bands for which the run has a number."""
        pairs = zip(self.reference.bands, self.values, strict=True)
        return [(band, value) for band, value in pairs if value is not None]

    @property
    def outside(self) -> list[tuple[Band, float]]:
        """Those whose number does not lie in the band."""
        return [(band, value) for band, value in self.known if not band.low <= value <= band.high]

    @property
    def inside(self) -> bool | None:
        """True if every number lies in its band; None if the run has none yet."""
        return not self.outside if self.known else None

    @property
    def text(self) -> str:
        """The comparison in one line."""
        named = ", ".join(map(str, self.reference.seeds))
        whose = f"the band of {self.reference.config}, seeds {named}"
        if self.inside is None:
            return f"no number yet that {whose}, has"
        if self.inside:
            return f"inside {whose} ({len(self.known)} of {len(self.values)} numbers known)"
        band, value = self.outside[0]
        return (
            f"outside {whose}, in {len(self.outside)} of {len(self.known)} numbers; {band.title}: "
            f"{value:.3g}, expected {band.low:.3g} to {band.high:.3g}"
        )


def compare_with_reference(workdir: epath.Path) -> Comparison | None:
    """The run in `workdir` beside the recorded runs of its config; None if none are recorded.

    What the run has not reached, and files that cannot be read, leave their numbers unknown.
    """
    run = read_standing(workdir)
    reference = find_reference(run.record)
    if reference is None:
        return None
    by_step = {line["step"]: line for line in tail_lines(workdir / "metrics.jsonl")}
    gain = _gain(workdir) if run.finished else None
    values = tuple(
        gain if band.name == GAIN else mean_of(by_step, band.name, band.first_step, band.last_step)
        for band in reference.bands
    )
    return Comparison(reference, values)


def find_reference(record: Mapping[str, Any]) -> Reference | None:
    """The recorded runs of a run's config, whatever its seeds.

    Args:
        record: content of run.json.
    """
    fields, evaluation = deciding_fields(record), evaluation_fields(record)
    for reference in read_references():
        if reference.fields == fields and reference.evaluation == evaluation:
            return reference
    return None


def read_references() -> list[Reference]:
    """Every record that comes with the package."""
    folder = shipped_folder()
    paths = [] if folder is None else sorted((folder / EXPECTED).glob("*.json"))
    return [read_reference(path) for path in paths]


def read_reference(path: Path) -> Reference:
    """The record in one file of configs/expected/."""
    found = json.loads(path.read_text())
    bands = tuple(Band(**band | {"values": tuple(band["values"])}) for band in found.pop("bands"))
    fields = {name: value for name, value in found["fields"].items() if not _is_free(name)}
    return Reference(**found | {"seeds": tuple(found["seeds"]), "bands": bands, "fields": fields})


def deciding_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """{setting: value} of each setting that a resume may not change and that is not the default.

    Seeds are left out. What names a file is its content's digest, if the run has recorded it.

    Args:
        record: content of run.json.
    """
    config, binding = record.get("config"), record.get("binding")
    if not isinstance(config, dict) or not isinstance(binding, list):
        return {}
    identity = record.get("identity")
    identity = identity if isinstance(identity, dict) else {}
    return {
        name: next((identity[i] for i in FILES.get(name, ()) if i in identity), config[name])
        for name in map(str, binding)
        if name in config
        and name.split(".")[-1] != "seed"
        and not (_is_free(name) or _is_default(name, config[name]))
    }


def _is_free(name: str) -> bool:
    """Whether a resume may change a setting, which may have been bound in earlier versions."""
    setting = SETTINGS.get(declared_name(name))
    return setting is not None and setting.resume == YES


def evaluation_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """{setting: value} of those that decide a held-out score.

    Args:
        record: content of run.json.
    """
    config = record.get("config")
    config = config if isinstance(config, dict) else {}
    return {name: config.get(f"evaluate.{name}") for name in EVALUATION}


def mean_of(
    by_step: Mapping[int, Mapping[str, Any]], name: str, first_step: int, last_step: int
) -> float | None:
    """A metric's mean over steps first to last; None unless each of them has it."""
    values = [by_step.get(step, {}).get(name) for step in range(first_step, last_step + 1)]
    known = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _is_default(name: str, value: Any) -> bool:
    setting = SETTINGS.get(declared_name(name))
    return setting is not None and json.dumps(value) == json.dumps(setting.default)


def _gain(workdir: epath.Path) -> float | None:
    """The last evaluation less the base model's, on the same problems in the same way."""
    try:
        before, after = (
            read_json(workdir / name, most_bytes=RECORD_BYTES, strict=False)
            for name in ("before_eval.json", "eval.json")
        )
    except (OSError, ForeignFileError):
        return None
    if any(before.get(name) != after.get(name) for name in ALIKE):
        return None
    if (before.get("checkpoint"), after.get("checkpoint")) != ("base", "latest"):
        return None
    scores = before.get("avg@k"), after.get("avg@k")
    first, last = (float(s) if isinstance(s, int | float) else math.nan for s in scores)
    return last - first if math.isfinite(last - first) else None
