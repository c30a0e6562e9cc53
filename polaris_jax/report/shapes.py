"""What a run's documents must hold to be drawn, and where one of them holds something else."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

NUMBER = (int, float)
MAYBE = (int, float, type(None))

# A shape is a type or several, a list with the shape of its items, or a mapping of fields to their
# shapes; a field with a question mark may be missing or null.
_EVALUATION = {
    "avg@k": NUMBER,
    "k": int,
    "problems": int,
    "temperature": NUMBER,
    "max_response_tokens": int,
    "stderr?": NUMBER,
    "pass@k?": dict,
    "length_groups?": [{"name": str, "accuracy": MAYBE}],
    "budget_curve?": [{"budget": NUMBER, "accuracy": NUMBER, "accuracy_yarn?": NUMBER}],
}
_SHAPES: MappingProxyType[str, Any] = MappingProxyType(
    {
        "stages.json": [
            {
                "stage": int,
                "first_step": int,
                "last_step?": int,
                "temperature": NUMBER,
                "max_response_tokens": int,
                "dropped_ids_count": int,
                "decisions?": [{"kind": str}],
            }
        ],
        "run.json": {"versions?": dict, "starts?": [dict], "config?": dict},
        "prepare.json": {},
        "calibrate.json": {
            "histogram": [int],
            "n": int,
            "shape": str,
            "problems": int,
            "kept": int,
            "dropped": int,
        },
        "probe.json": {
            "temperatures": [NUMBER],
            "accuracies": [NUMBER],
            "diversities": [MAYBE],
            "stderrs?": [MAYBE],
            "zones?": {"labels?": [str]},
            "initial_temperature?": NUMBER,
        },
    }
)


def misfit(name: str, document: Any) -> str:
    """What is wrong with a document of that file name, in a line; "" where nothing is."""
    return _misfit(document, _SHAPES.get(name, _EVALUATION), "")


def line_misfit(line: dict[str, Any]) -> str:
    """The same of a line of metrics.jsonl or timing.jsonl: a step, and numbers or null, or lists of
    them, one a process."""
    for key, value in line.items():
        number = [MAYBE] if isinstance(value, list) else MAYBE
        wanted = int if key == "step" else number if "/" in key else object
        if found := _misfit(value, wanted, key):
            return found
    return ""


def _misfit(value: Any, shape: Any, where: str) -> str:
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


def _types(shape: Any) -> tuple[type, ...]:
    return shape if isinstance(shape, tuple) else (shape,) if isinstance(shape, type) else ()
