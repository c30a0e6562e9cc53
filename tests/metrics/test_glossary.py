"""Every metric that is written is declared, every declared one is written, and the page is made."""

import pathlib
import re

from polaris_jax.metrics.glossary import is_known, known_names, markdown
from polaris_jax.metrics.rollout_stats import COUNTED
from polaris_jax.run.step_clock import GRADER_STATS, SAMPLER_STATS

ROOT = pathlib.Path(__file__).resolve().parents[2]
AREAS = "rollout|update|batch|data|eval|time|throughput|memory|reward|sampler|compiles"


def written_names():
    """Names in the package's texts, those of the glossary left out."""
    package = [
        path.read_text()
        for path in sorted((ROOT / "polaris_jax").rglob("*.py"))
        if path.name != "glossary.py"
    ]
    names = re.findall(rf'"((?:{AREAS})/[a-z_@]+)"', "\n".join(package))
    names += [f"batch/{name}" for name in COUNTED]
    names += [f"sampler/{name}" for name in SAMPLER_STATS]
    names += [f"reward/{name}" for name in GRADER_STATS]
    return set(names)


def test_the_page_is_what_the_declarations_make():
    assert (ROOT / "docs" / "metrics.md").read_text() == markdown(), "run `make docs`"


def test_every_metric_is_declared():
    names = written_names()
    assert len(names) > 50
    beginnings = tuple(known_names())  # "eval/avg@" is written with a number behind it
    unknown = [name for name in sorted(names) if not is_known(name)]
    assert [n for n in unknown if not any(known.startswith(n) for known in beginnings)] == []


def test_every_declared_metric_is_written():
    """Some names are put together from a beginning or an end that stands in the package."""
    texts = "\n".join(
        path.read_text()
        for path in (ROOT / "polaris_jax").rglob("*.py")
        if path.name != "glossary.py"
    )

    def stands(name):
        last = re.split("[/@]", name)[-1]
        ends = r"_s$|_correct$|_incorrect$|_mean$|_max$"
        parts = {last, re.sub(ends, "", last)}
        return name in texts or any(re.search(rf"\b{re.escape(part)}\b", texts) for part in parts)

    assert [name for name in sorted(known_names()) if not stands(name)] == []


def test_patterns_fit_what_users_name():
    assert is_known("eval/avg@32") and is_known("reward/my_part")
    assert not is_known("rollout/new") and not is_known("eval/avg@k")
