"""The model card: README.md in the form of the Hugging Face Hub, beside an export."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax import __version__
from polaris_jax.config import SETTINGS, ConfigError, declared_name
from polaris_jax.publish.facts import OWN, README, WARM_START, Origin, RunFacts, place_name
from polaris_jax.run.standing import duration, score_text
from polaris_jax.system.files import write_bytes
from polaris_jax.system.foreign import CONFIG_BYTES, ForeignFileError, read_json, read_text
from polaris_jax.system.text import printable

CARD = README
UNKNOWN = "unknown: fill in"
TAGS = ("polaris_jax", "polaris", "grpo", "reinforcement-learning", "reasoning")
# A card of ours ends in a line with the digest of all that stands before it: a card that a person
# has edited is no longer ours to overwrite.
_MARK = re.compile(r"<!-- polaris publish ([0-9a-f]{32}) -->\n")
_SIZES = {
    "model_type": "architecture",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
    "torch_dtype": "element type",
    "dtype": "element type",
}


def publish(
    facts: RunFacts, export: epath.Path, *, license: str = "", overwrite: bool = False
) -> epath.Path:
    """Writes the card beside the export, and returns its path.

    Args:
        facts: what is known of the run.
        export: a Hugging Face directory, as `polaris convert` writes it.
        license: identifier of the weights' licence; empty: the base model's, if it is known.
        overwrite: replace a card that this function did not write, or that was edited since.

    Raises:
        ConfigError: there is no export, or a card is there that may not be replaced.
    """
    architecture = _architecture(export)
    path = export / CARD
    if path.exists() and not overwrite and not is_ours(path):
        raise ConfigError(
            f"{path}: is there, and `polaris publish` did not write it, or it was edited since; "
            "move it away, or use --overwrite to replace it"
        )
    write_bytes(path, marked(card_text(facts, architecture, license=license)).encode())
    return path


def is_ours(path: epath.Path) -> bool:
    """True if `publish` wrote the file, and nobody has changed it since."""
    try:
        text = read_text(path, most_bytes=CONFIG_BYTES)
    except ForeignFileError:
        return False
    end = text.rfind("<!-- polaris publish ")
    return end >= 0 and marked(text[:end]) == text


def marked(text: str) -> str:
    """The text of a card with its last line."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text}<!-- polaris publish {digest} -->\n"


def card_text(facts: RunFacts, architecture: Mapping[str, Any], *, license: str = "") -> str:
    """The card without its last line.

    Args:
        facts: what is known of the run.
        architecture: content of the export's config.json.
        license: see `publish`.
    """
    base = facts.base
    weights_license = license or ("" if base.license == OWN else base.license)
    parts = [
        _front_matter(facts, weights_license),
        f"# {_title(facts)}\n",
        "Trained with reinforcement learning on verifiable rewards (GRPO) by "
        f"[polaris_jax](https://pypi.org/project/polaris_jax) {__version__}, which implements the "
        "[POLARIS](https://hkunlp.github.io/blog/2025/Polaris) recipe.\n",
        _section("Model", _table(("", ""), _model_rows(facts, architecture))),
        _section("Scores", _scores(facts)),
        _section("Data", _data(facts)),
        _section("Training", _training(facts)),
        _section("Licences", _table(("of", "licence"), _license_rows(facts, weights_license))),
        _section("What this card does not know", _bullets(facts.unknown)),
        _section("Use", _USE),
        _section("Cite", _CITE),
    ]
    return "\n".join(parts)


def _architecture(export: epath.Path) -> dict[str, Any]:
    path = export / "config.json"
    if not path.exists():
        raise ConfigError(
            f"--export={export}: holds no Hugging Face model (no config.json); make it with "
            f"`polaris convert --from RUN/checkpoints --to {export}`"
        )
    return read_json(path, most_bytes=CONFIG_BYTES, remedy="export the model again")


def _front_matter(facts: RunFacts, license: str) -> str:
    """The YAML head. JSON texts are YAML texts."""
    known = f"license: {json.dumps(license)}" if license else f"license: unknown  # {UNKNOWN}"
    lines = ["---", known]
    if license == facts.base.license == "other":
        named = {"license_name": facts.base.license_name, "license_link": facts.base.license_link}
        lines += [f"{field}: {json.dumps(value)}" for field, value in named.items() if value]
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    if facts.base.hub_id:
        lines += ["base_model:", f"- {json.dumps(facts.base.hub_id)}"]
    elif facts.base.doubtful:
        lines.append(f"# base_model: {UNKNOWN}")
    if named := [origin.hub_id for origin, _ in facts.data if origin.hub_id]:
        lines += ["datasets:", *(f"- {json.dumps(name)}" for name in named)]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in TAGS), "---", ""])


def _title(facts: RunFacts) -> str:
    name = facts.base.name.rpartition("/")[2]
    name = "A model" if name in ("", WARM_START) else name
    return f"{_cell(name)} after POLARIS"


def _model_rows(facts: RunFacts, architecture: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("base model", _cell(facts.base.name) or UNKNOWN)]
    for key, name in _SIZES.items():
        value = architecture.get(key)
        if isinstance(value, str | int) and name not in dict(rows):
            rows.append((name, f"{value:,}" if type(value) is int else _cell(value)))
    return rows


def _scores(facts: RunFacts) -> str:
    rows = [
        (
            _cell(score.weights),
            f"avg@{score.figures['k']}",
            f"{score.figures['avg@k']:.1%}",
            _interval(score.figures),
            f"{score.figures['problems']:,}",
            _cell(_problem_set(score.problems)),
            f"{score.figures['temperature']:g}",
            f"{score.figures['max_response_tokens']:,}",
            _cell(score.yarn),
        )
        for score in facts.evaluations
    ]
    heads = ("weights", "", "score", "95% interval", "problems", "of", "temperature", "tokens")
    lines = [_table((*heads, "YaRN"), rows) if rows else "No evaluation is in the workdir."]
    lines.append("\nIntervals are bootstraps over problems; there is none if all of them agree.")
    if held_out := score_text(facts.standing):
        lines.append(f"\nDuring training: {_cell(held_out)}.")
    return "\n".join(lines)


def _data(facts: RunFacts) -> str:
    rows = [
        (
            _cell(origin.name) or UNKNOWN,
            UNKNOWN if kept is None else f"{kept:,}",
            _cell(origin.license) or UNKNOWN,
        )
        for origin, kept in facts.data
    ]
    lines = [_table(("source", "problems kept", "licence"), rows)]
    calibrated = facts.documents.get("calibrate.json", {})
    if all(type(calibrated.get(name)) is int for name in ("kept", "problems", "n")):
        lines.append(
            f"\nDifficulty was measured with {calibrated['n']} responses a problem: "
            f"{calibrated['kept']:,} of {calibrated['problems']:,} problems stayed."
        )
    if dropped := (facts.standing.stage or {}).get("dropped_ids_count"):
        lines.append(f"\nBetween stages {dropped:,} problems that had become easy were dropped.")
    return "\n".join(lines)


def _training(facts: RunFacts) -> str:
    record, standing = facts.record, facts.standing
    stages = [
        (
            str(stage["stage"]),
            f"{stage['first_step']} to {'-' if stage['last_step'] is None else stage['last_step']}",
            _number(stage.get("temperature")),
            f"{stage['max_response_tokens']:,}",
        )
        for stage in standing.stages
    ]
    counts = record.get("counts")
    sampled = counts.get("sampled_tokens") if isinstance(counts, dict) else None
    devices = record.get("devices")
    versions = record.get("versions")
    rows = [
        ("steps", str(standing.steps) if standing.steps else UNKNOWN),
        ("response tokens sampled", f"{sampled:,}" if type(sampled) is int else UNKNOWN),
        ("time of all steps", duration(standing.seconds) if standing.seconds else UNKNOWN),
        ("hardware", _hardware(devices, record.get("processes"))),
        ("commit", _cell(record.get("commit")) or UNKNOWN),
        ("seed", _cell(facts.config.get("seed")) or UNKNOWN),
        ("versions", _cell(_versions(versions)) or UNKNOWN),
    ]
    lines = [_table(("", ""), rows)]
    if stages:
        lines += ["", _table(("stage", "steps", "temperature", "response tokens"), stages)]
    if differing := _settings(facts.config):
        lines += ["", "Settings that are not the defaults:", "", "```", *differing, "```"]
    return "\n".join(lines)


def _settings(config: Mapping[str, Any]) -> list[str]:
    """`name=value` of each setting that has another value than its default."""
    found = []
    for name, value in sorted(config.items()):
        known = SETTINGS.get(declared_name(name))
        default = known.default if known else None
        if known is None or json.dumps(value) != json.dumps(default):
            value = place_name(value) if isinstance(value, str) else value
            found.append(printable(f"{name}={json.dumps(value)}").replace("`", "'"))
    return found


def _hardware(devices: Any, processes: Any) -> str:
    if not isinstance(devices, dict) or not devices:
        return UNKNOWN
    named = ", ".join(f"{count} x {kind}" for kind, count in devices.items())
    return _cell(f"{named}; processes: {processes}" if type(processes) is int else named)


def _versions(versions: Any) -> str:
    if not isinstance(versions, dict):
        return ""
    wanted = ("polaris_jax", "jax", "jaxlib", "python")
    return ", ".join(f"{name} {versions[name]}" for name in wanted if name in versions)


def _license_rows(facts: RunFacts, license: str) -> list[tuple[str, str]]:
    def row(what: str, origin: Origin) -> tuple[str, str]:
        return (f"{what}: {_cell(origin.name) or UNKNOWN}", named(origin.license, origin))

    def named(license: str, origin: Origin) -> str:
        more = [origin.license_name, origin.license_link] if license == "other" else []
        known = ", ".join(filter(None, more))
        return _cell(f"{license} ({known})" if known else license) or UNKNOWN

    weights = ("these weights", named(license, facts.base))
    return [
        weights,
        row("base", facts.base),
        *(row("problems", origin) for origin, _ in facts.data),
    ]


def _problem_set(problems: str | None) -> str:
    if problems is None:
        return UNKNOWN
    return place_name(problems) or "held-out word problems of polaris_jax"


def _interval(figures: Mapping[str, Any]) -> str:
    if "interval" not in figures:  # of a version that took none
        return UNKNOWN
    interval = figures["interval"]
    return "none" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:g}" if known else UNKNOWN


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    """A foreign text as one cell: no markup, no line, no column of its own."""
    text = printable(" ".join(str("" if value is None else value).split()))[:300]
    return re.sub(r"([|\\`*_\[\]<>])", r"\\\1", text)


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", torch_dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(".")
```

Without torch: `polaris generate --model=. --prompt="..."`."""
_CITE = """The recipe is by An et al. 2025, *POLARIS: A Post-Training Recipe for Scaling
Reinforcement Learning on Advanced Reasoning Models*."""
