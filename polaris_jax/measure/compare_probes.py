"""`polaris probe --compare A B ...`: several probes in one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.report.comparisons import probe_comparison
from polaris_jax.report.figures import ZONES
from polaris_jax.report.run_files import read_probe

PROBED = "probe.json"
FIGURE = "probes_compared.png"
# What two diversities must share to be comparable, as probe.json names it; see `distinct_ngrams`.
SHARED = ("n", "problems", "max_response_tokens", "problem_set")


def compare_probes(
    sources: Sequence[epath.Path],
    names: Sequence[str],
    out: epath.Path,
    *,
    say: Callable[[str], None],
) -> None:
    """Draws several probes in one figure -> probes_compared.png.

    Args:
        sources: workdirs or probe.json files.
        names: a name for each.
        out: directory of the figure; made if it is not there.
        say: gets lines for a person.

    Raises:
        ConfigError: a source holds no probe.
    """
    probes = []
    for source in sources:
        path = source / PROBED if source.is_dir() else source
        if not path.exists():
            raise ConfigError(
                f"--compare={source}: has no {PROBED}; name a workdir that `polaris probe` has "
                "filled, or its probe.json"
            )
        probes.append(read_probe(path))
    for name, found in zip(names, probes, strict=True):
        chosen = found.get("initial_temperature")
        say(
            f"{name}: {len(found['temperatures'])} temperatures, best accuracy "
            f"{max(found['accuracies']):.1%}, suggested temperature "
            f"{'none' if chosen is None else format(chosen, 'g')}{_zones_text(found)}"
        )
    for field in SHARED:
        values = [found.get(field) for found in probes]
        known = [value for value in values if value is not None]
        if len(set(map(str, known))) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            say(
                f"warning: {field} differs ({listed}): accuracies and diversities of different "
                "samples do not compare"
            )
    out.mkdir(parents=True, exist_ok=True)
    probe_comparison(probes, names, out / FIGURE)
    say(f"figure: {out / FIGURE}")


def _zones_text(found: Mapping[str, Any]) -> str:
    """`; rgz 0.6 to 1, cez 1.2, pcz 1.4`: the probed temperatures of each zone."""
    labels = (found.get("zones") or {}).get("labels") or []
    if len(labels) != len(found["temperatures"]):
        return ""
    texts = []
    for zone in ZONES:
        pairs = zip(labels, found["temperatures"], strict=True)
        within = [format(temperature, "g") for label, temperature in pairs if label == zone]
        if within:
            texts.append(f"{zone} {' to '.join(dict.fromkeys((within[0], within[-1])))}")
    return f"; {', '.join(texts)}" if texts else ""
