"""What results depend on beside the config: the model's files and the problems, by content.

A path or a Hub name is in the config, and what lies there may change: a new export, a moved
revision, an edited problem file. Results of both would be mixed, or the old ones returned for the
new model. So every result is kept with the digests of its inputs, and other inputs are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from polaris_jax.config import ConfigError


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


def _differ(former: Any, now: Any) -> bool:
    """True if two inputs differ; of two objects, in what both have (a later version adds more)."""
    if isinstance(former, Mapping) and isinstance(now, Mapping):
        return any(former[name] != now[name] for name in former.keys() & now.keys())
    return former != now


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 48 else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
