"""What results depend on beside the config: the model's files and the problems, by content.

A path or a Hub name is in the config, and what lies there may change: a new export, a moved
revision, an edited problem file. Results of both would be mixed, or the old ones returned for the
new model. So every result is kept with the digests of its inputs, and other inputs are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polaris_jax.config import ConfigError, StageSection
from polaris_jax.system.foreign import RECORD_BYTES, ForeignFileError, read_json

if TYPE_CHECKING:
    from etils import epath


def refuse_other_inputs(
    former: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    places: Mapping[str, str],
    of: str,
    remedy: str,
) -> None:
    """Raises ConfigError if an input that both name differs.

    Args:
        former: the inputs of earlier results, by name; {} if none are recorded.
        inputs: the present inputs, by name.
        places: config field and value of each name, as errors say them.
        of: what the earlier results are, behind "than": "the run in workdir=... began with".
        remedy: what to do if the present files are the right ones.

    Raises:
        ConfigError: names the fields, the inputs and both digests.
    """
    names = differing_inputs(former, inputs)
    if not names:
        return
    where = " and ".join(dict.fromkeys(places[name] for name in names))
    what = " and ".join(names)
    both = ", ".join(f"{_short(former[n])} there, {_short(inputs[n])} here" for n in names)
    raise ConfigError(
        f"{where}: another {what} than {of} ({both}); put the former files back, or {remedy}"
    )


def differing_inputs(former: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """Names of the inputs that both have and that differ."""
    return [name for name in inputs if name in former and _differ(former[name], inputs[name])]


def say_if_probed_for_another(
    stages: Sequence[StageSection],
    workdir: epath.Path,
    model: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Warns if a stage begins at a temperature that was probed with other weights than these.

    Args:
        stages: `config.stages`.
        workdir: where `probe` left probe.json.
        model: the `model_inputs` that training begins with.
        say: gets the warning.
    """
    path = workdir / "probe.json"
    rules = [stage.temperature_rule for stage in stages]
    if "probe" not in rules or not path.exists():
        return
    try:
        known = read_json(path, most_bytes=RECORD_BYTES).get("model")
    except (OSError, ForeignFileError):
        return  # the stage says what is wrong with it
    if isinstance(known, dict) and (other := differing_inputs(known, model)):
        say(
            f"warning: {path} was probed for a model with another {' and '.join(other)}, and a "
            "stage takes its temperature; `polaris probe` makes it anew"
        )


def _differ(former: Any, now: Any) -> bool:
    """True if two inputs differ; of two objects, in what both have (a later version adds more)."""
    if isinstance(former, Mapping) and isinstance(now, Mapping):
        return any(former[name] != now[name] for name in former.keys() & now.keys())
    return former != now


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 48 else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
