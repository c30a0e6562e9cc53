"""Reads the files of a run directory for the report, and says why a file cannot be used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, TypeVar

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.evaluate.scoring import parts_of
from polaris_jax.metrics import read_metrics
from polaris_jax.run.reference import Comparison, compare_with_reference
from polaris_jax.system.files import as_place, matching
from polaris_jax.system.foreign import RECORD_BYTES, read_json, require_regular

T = TypeVar("T")

NUMBER = (int, float)
MAYBE = (int, float, type(None))

# The expected shape of each JSON file. A shape is a type, a tuple of types, a list with the shape
# of the items, or a mapping of fields to shapes. A field whose name ends in a question mark, or
# whose types include None, may be missing or null. Other fields of a file are ignored.
_EVALUATION = {
    "avg@k": NUMBER,
    **dict.fromkeys(("k", "problems", "max_response_tokens"), int),
    "temperature": NUMBER,
    "stderr?": NUMBER,
    "checkpoint?": str,
    "pass@k?": dict,
    **dict.fromkeys(("maj@k?", "sets?", "problem_scores?", "attention_factors?", "yarn?"), dict),
    **dict.fromkeys(("pass@k_interval?", "maj@k_interval?"), dict),
    "interval?": [NUMBER],
    **dict.fromkeys(
        ("mean_length?", "truncated_share?", "no_box_share?", "not_one_think_share?"), NUMBER
    ),
    "length_groups?": [{"name": str, "accuracy": MAYBE}],
    "budget_curve?": [{"budget": NUMBER, "accuracy": NUMBER, "accuracy_yarn?": NUMBER}],
}
_STAGE = {
    **dict.fromkeys(("stage", "first_step", "last_step?", "max_response_tokens"), int),
    "temperature": NUMBER,
    "dropped_ids_count": int,
    "decisions?": [{"kind": str}],
}
_SHAPES: MappingProxyType[str, Any] = MappingProxyType(
    {
        "stages.json": [_STAGE],
        "run.json": {"versions?": dict, "starts?": [dict], "config?": dict},
        "prepare.json": {},
        "calibrate.json": {
            "histogram": [int],
            "shape": str,
            "rates?": [NUMBER],
            **dict.fromkeys(("n", "problems", "kept", "dropped"), int),
        },
        "probe.json": {
            "temperatures": [NUMBER],
            "accuracies": [NUMBER],
            "diversities": [MAYBE],
            "stderrs?": [MAYBE],
            "diversity_stderrs?": [MAYBE],
            **{f"{name}?": [MAYBE] for name in ("entropies", "mean_lengths", "clip_ratios")},
            "zones?": {"labels?": [str]},
            "initial_temperature?": NUMBER,
        },
    }
)


def _lines_misfit(lines: list[dict[str, Any]]) -> str:
    """What is wrong with the lines of metrics.jsonl or timing.jsonl, in one line; "" if nothing is.

    A step is an integer. A metric (a name with a slash) is a number or null; what ends in
    `by_process` or `by_rows` is a list of these.
    """
    for number, line in enumerate(lines, 1):
        for key, value in line.items():
            metric = [MAYBE] if key.endswith(("by_process", "by_rows")) else MAYBE
            wanted = int if key == "step" else metric if "/" in key else object
            if found := _misfit(value, wanted, key):
                return f"line {number}: {found}"
    return ""


def _finite(value: Any) -> Any:
    """The value; None for a NaN or an infinity, as our own files have it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _misfit(value: Any, shape: Any, where: str = "") -> str:
    """Why `value` does not have the expected shape, in one line; "" if it has.

    Args:
        value: parsed JSON.
        shape: the expected shape; see `_SHAPES`.
        where: path of the value in its file, for the text.
    """
    at = f"{where}: " if where else ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{at}{type(value).__name__}, expected a list"
        found = (_misfit(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value))
        return next((text for text in found if text), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{at}{type(value).__name__}, expected an object"
        for field, inner in shape.items():
            name = field.removesuffix("?")
            if value.get(name) is None and (name != field or type(None) in _types(inner)):
                continue
            if name not in value:
                return f"{at}no field {name!r}"
            if text := _misfit(value[name], inner, f"{where}.{name}" if where else name):
                return text
        return ""
    if not isinstance(value, shape):
        wanted = " or ".join(kind.__name__ for kind in _types(shape))
        return f"{at}{type(value).__name__}, expected {wanted}"
    return ""


def _evaluation_misfit(value: Any) -> str:
    """`_misfit` of an eval.json, whose figures by k have whole numbers as names."""
    if wrong := _misfit(value, _EVALUATION):
        return wrong
    for name in ("pass@k", "maj@k"):
        for k, score in (value.get(name) or {}).items():
            if not k.isdecimal() or not int(k) or not isinstance(score, NUMBER):
                return f"{name}: {k!r}: {score!r}, expected numbers by a whole k"
    budgets = [point["budget"] for point in value.get("budget_curve") or []]
    return f"budget_curve: budget {min(budgets)}" if budgets and min(budgets) < 1 else ""


def _types(shape: Any) -> tuple[type, ...]:
    return shape if isinstance(shape, tuple) else (shape,) if isinstance(shape, type) else ()


BEFORE_TAG = "before"


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The parsed files of a run. A file that is absent gives None or an empty list.

    Attributes:
        metrics: lines of metrics.jsonl, one a step.
        timing: lines of timing.jsonl, one a step.
        stages: records of stages.json, one a stage.
        run: run.json.
        prepare: prepare.json, the summary of `polaris prepare`.
        calibrate: calibrate.json, the result of `polaris calibrate`.
        probe: probe.json, the result of `polaris probe`.
        evaluation: eval.json, usually the score after training; `summary.score_name` says which
            weights were scored.
        before: before_eval.json, usually the score of the weights that training started from.
        others: scores in other files TAG_eval.json, by tag.
        absent: reason why a file is missing here, by file name: the file does not exist, is empty,
            or is damaged.
        gaps: which steps a file lacks that another one has, by file name.
        compared: the run beside the recorded runs of its config; None if none are recorded.
    """

    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    run: dict[str, Any] | None
    prepare: dict[str, Any] | None
    calibrate: dict[str, Any] | None
    probe: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    before: dict[str, Any] | None
    others: dict[str, dict[str, Any]]
    absent: dict[str, str]
    gaps: dict[str, str] = dataclasses.field(default_factory=dict)
    compared: Comparison | None = None


def read_run(run_dir: epath.Path) -> RunFiles:
    """The files of the run in `run_dir`.

    A file that cannot be parsed, or that does not have the expected shape, counts as absent.

    Raises:
        FileNotFoundError: `run_dir` is not a directory.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(2, "there is no such run directory", str(run_dir))
    absent: dict[str, str] = {}

    def read(name: str, parse: Callable[[epath.Path], T], misfit: Callable[[T], str]) -> T | None:
        path = run_dir / name
        if not path.exists():
            absent[name] = "not there"
            return None
        try:
            require_regular(path)
            found = parse(path)
            wrong = misfit(found)
        except (ValueError, RecursionError) as error:
            found, wrong = None, str(error).removeprefix(f"{path}: ")
        if wrong:
            absent[name] = f"damaged: {wrong}"
            return None
        return found

    def lines(name: str) -> list[dict[str, Any]]:
        found = read(name, read_metrics, _lines_misfit)
        if found == []:
            absent[name] = "empty"
        return [{key: _finite(value) for key, value in line.items()} for line in found or []]

    def document(name: str) -> Any:
        shape = _SHAPES.get(name)
        return read(
            name,
            lambda path: read_json(
                path, most_bytes=RECORD_BYTES, kind=object, strict=False, remedy="make it again"
            ),
            lambda found: _evaluation_misfit(found) if shape is None else _misfit(found, shape),
        )

    tagged = {
        path.name.removesuffix("_eval.json"): document(path.name)
        for path in matching(run_dir, "*_eval.json")
    }
    tagged.setdefault(BEFORE_TAG, document(f"{BEFORE_TAG}_eval.json"))
    before = tagged.pop(BEFORE_TAG)
    metrics, timing, run = lines("metrics.jsonl"), lines("timing.jsonl"), document("run.json")
    return RunFiles(
        metrics=metrics,
        timing=timing,
        stages=document("stages.json") or [],
        run=run,
        prepare=document("prepare.json"),
        calibrate=document("calibrate.json"),
        probe=document("probe.json"),
        evaluation=document("eval.json"),
        before=before,
        others={tag: value for tag, value in tagged.items() if value is not None},
        absent=absent,
        gaps=_gaps({"metrics.jsonl": metrics, "timing.jsonl": timing}),
        compared=None if run is None else compare_with_reference(as_place(run_dir)),
    )


def _gaps(files: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Which steps each file has no line for, of the steps that any of them has one for."""
    steps = {name: {line["step"] for line in lines} for name, lines in files.items()}
    known = {step for own in steps.values() for step in own if step >= 0}  # -1 is no step's
    return {
        name: f"no line for {len(known - own)} of {len(known)} steps, the first of them "
        f"{min(known - own)}"
        for name, own in steps.items()
        if own and known - own
    }


def read_probe(path: epath.Path) -> dict[str, Any]:
    """The content of a probe.json.

    Raises:
        ConfigError: the file is not what `polaris probe` leaves.
    """
    remedy = "make it again with `polaris probe`"
    found = read_json(path, most_bytes=RECORD_BYTES, remedy=remedy)
    wrong = _misfit(found, _SHAPES["probe.json"])
    sizes = {len(found.get(name) or []) for name in ("temperatures", "accuracies", "diversities")}
    if not wrong and (len(sizes) > 1 or 0 in sizes):
        wrong = "its lists are empty, or of different lengths"
    if not wrong and None in found["diversities"]:
        wrong = "a diversity is null"
    if wrong:
        raise ConfigError(f"{path}: not what `polaris probe` leaves: {wrong}; {remedy}")
    return found


def read_evaluation(path: epath.Path) -> dict[str, Any]:
    """The content of an eval.json.

    Raises:
        ConfigError: the file is not what `polaris evaluate` leaves.
    """
    remedy = "make it again with `polaris evaluate`"
    found = read_json(path, most_bytes=RECORD_BYTES, remedy=remedy)
    for part in parts_of(found):
        if wrong := _evaluation_misfit(part.figures):
            raise ConfigError(f"{path}: not what `polaris evaluate` leaves: {wrong}; {remedy}")
    return found


def holds_anything(run: RunFiles) -> bool:
    """True if the directory has at least one file of a run, even a damaged one."""
    files = dataclasses.asdict(run)
    absent = files.pop("absent")
    return any(files.values()) or any(why != "not there" for why in absent.values())
