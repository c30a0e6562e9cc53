"""The page of the small ablations: one line a claim, then every table.

usage: ablations.py RUNS OUTDIR       OUTDIR/ablations.json, ablations.md, ablations_TABLE.png

RUNS has a folder for each table of configs/ablations that was run. A table that it lacks keeps what
OUTDIR/ablations.json has of it. Nothing here depends on the time or the machine, so the page is the
same whenever the runs are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLES = (
    "headline",
    "headline_mastered",
    "headline_sure",
    "parts",
    "controls",
    "rescue_by_difficulty",
    "temperature",
    "difficulty",
    "yarn",
    "reset",
    "length",
    "easy_drop",
    "objective",
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of the summary.

    Attributes:
        table: name of the table.
        arm: the arm whose difference is the line's.
        text: what is claimed, and by whom.
        expected: sign of the difference that was written down before the runs: +, - or 0.
    """

    table: str
    arm: str
    text: str
    expected: str


CLAIMS = (
    Claim("headline", "polaris", "the complete recipe beats plain GRPO at equal tokens", "+"),
    Claim("headline_mastered", "polaris", "the same, where most problems are mastered", "+"),
    Claim("headline_sure", "polaris", "the same, where the base is sure of its mistakes", "+"),
    Claim("parts", "rescue", "blog: rescue makes sparse rewards usable", "+"),
    Claim("parts", "substitution", "blog: substitution stands in for dynamic sampling", "0"),
    Claim("parts", "both", "blog: both together", "+"),
    Claim("parts", "one-copy", "one copy of a donor at most", "+"),
    Claim("parts", "dynamic", "dynamic sampling (DAPO) at equal tokens", "+"),
    Claim("parts", "weighting", "prompts drawn by p(1 - p)", "+"),
    Claim("controls", "permuted", "permuted rewards teach nothing", "-"),
    Claim("controls", "foreign-golds", "other problems' golds teach nothing", "-"),
    Claim("rescue_by_difficulty", "1-steps-rescue", "rescue where all problems are easy", "0"),
    Claim("rescue_by_difficulty", "4-5-steps-rescue", "rescue where most are never solved", "+"),
    Claim("temperature", "0.4", "blog: a cold temperature explores too little", "-"),
    Claim("temperature", "probed", "blog: the probed temperature is at least as good", "0"),
    Claim("temperature", "1.6", "blog: a collapsed temperature loses", "-"),
    Claim("difficulty", "drop_perfect", "blog: without what is always solved it gains", "+"),
    Claim("difficulty", "aggressive", "blog: without the easier half it gains less", "+"),
    Claim("difficulty", "too-easy", "blog: easy problems alone teach too little", "-"),
    Claim("yarn", "5-steps-1.5", "YaRN inside the trained length", "-"),
    Claim("yarn", "6-steps-1.25", "YaRN just beyond the trained length", "+"),
    Claim("yarn", "7-steps-1.25", "blog: YaRN beyond the trained length", "+"),
    Claim("yarn", "8-steps-1.5", "blog: YaRN far beyond the trained length", "+"),
    Claim("reset", "match-diversity", "blog: a reset regains diversity and gains", "+"),
    Claim("length", "short", "blog: a short budget loses", "-"),
    Claim("length", "short-then-long", "blog: short, then long loses", "-"),
    Claim("easy_drop", "dropped", "blog: dropping what is learned gains", "+"),
    Claim("objective", "clip-0.2-0.28-of-4", "DAPO: a higher upper clip gains", "+"),
    Claim("objective", "kl-0.01", "blog: without a KL term it is as good", "0"),
    Claim("objective", "entropy-0.001", "blog: without an entropy bonus it is as good", "0"),
    Claim("objective", "old-sampler", "the sampler's log-probs do as well", "0"),
)


def verdict(difference: Mapping[str, Any], expected: str) -> str:
    """What a difference says: two standard errors make a gain or a loss."""
    mean, error = difference["mean"], difference["stderr"] or 0.0
    found = "+" if mean > 2 * error else "-" if mean < -2 * error else "0"
    words = {"+": "a gain", "-": "a loss", "0": "no difference found"}
    if found == expected:
        return f"{words[found]}, as expected"
    return f"{words[found]}; expected {words[expected].removesuffix(' found')}"


def claim_lines(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| claim | against | difference, points | 95% | above 0 | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        arms = {arm["name"]: arm for arm in tables.get(claim.table, {}).get("arms", ())}
        arm = arms.get(claim.arm)
        if arm is None or (found := arm["difference"]) is None:
            continue  # not run yet, or without a pair
        interval = (
            f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
            if found["low"] is not None
            else ""
        )
        lines.append(
            f"| {claim.text} (`{claim.arm}`, [{claim.table}](#{claim.table})) | `{arm['against']}` "
            f"| {100 * found['mean']:+.1f} ± {100 * (found['stderr'] or 0):.1f} | {interval} | "
            f"{found['positive']} of {found['n']} | {verdict(found, claim.expected)} |"
        )
    return lines


def as_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as JSON with a line for each arm, each run and each other value."""

    def lines(value: Any) -> str:
        if not isinstance(value, list):
            return json.dumps(value, sort_keys=True)
        return "[\n" + ",\n".join(json.dumps(one, sort_keys=True) for one in value) + "\n]"

    def table(value: Mapping[str, Any]) -> str:
        fields = (f"{json.dumps(name)}: {lines(value[name])}" for name in sorted(value))
        return "{\n" + ",\n".join(fields) + "\n}"

    named = (f"{json.dumps(name)}: {table(tables[name])}" for name in sorted(tables))
    return "{\n" + ",\n".join(named) + "\n}\n"


def docstring(table: str) -> str:
    """What a table's file says about it, without its command."""
    spec = importlib.util.spec_from_file_location(
        table, ROOT / "configs" / "ablations" / f"{table}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    paragraphs = (module.__doc__ or "").strip().split("\n\n")
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if not p.startswith("    "))


HEAD = """# Ablations

Does the recipe beat plain GRPO, and which of its parts do? At a size where every run takes seconds:
0.2M parameters, 192 word problems of one to five steps, 60 steps a stage. Made by `make ablations`
and `make ablations-all`; tables in configs/ablations. What was expected of each was written there
before its runs. [When, where, and whether it comes out again](2026-12-01_ablations_run.md).

What the base is: a small Qwen3 trained by supervision on worked solutions in which some arithmetic
facts are mostly wrong, each in a way of its own: three in ten, so that the base always solves a
third of its problems and never two fifths in 8 attempts. What a gain is: facts that are written
right after RL, in the same way of writing; below some tables each gain is split into this and into
the choice of the way. Why this task: in an earlier one every error was the same slip, and plain
GRPO unlearned it in ten steps, so no part of the recipe had anything to do
([notebook](../notebook/ablations.md), with everything else that was tried).

The complete recipe meets plain GRPO in three regimes: this one (headline), one in which most
problems are mastered (headline_mastered), and one in which the base is sure of its mistakes
(headline_sure). Each section says why its regime should favour the recipe.

Design: nine bases, each with its own warm start and problem set, and one RL seed each, fixed
beforehand. The figure is the mean of the held-out scores over a run (128 problems, 4 responses,
temperature 0.6), so a run that learns early counts for more. Differences are paired by base. In the
headlines and the parts each arm has the best of three learning rates, found on three bases that are
not counted. A verdict is a difference of more than two standard errors.
No arm and no seed has been left out. At this size nothing follows for large models: updates are few
and noisy, and a small model forgets what it does not practise. The tables show whether the parts do
here what they are for, or that they do not.

"""


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    runs, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    recorded = out / "ablations.json"
    tables = json.loads(recorded.read_text()) if recorded.exists() else {}
    pages = []
    for table in TABLES:
        found, picture = runs / table / "ablations.json", f"ablations_{table}.png"
        if found.exists():
            body = (runs / table / "ablations.md").read_text().split("\n", 1)[1].strip()
            tables[table] = {**json.loads(found.read_text()), "page": body}
            shutil.copyfile(runs / table / "ablations.png", out / picture)
        elif table in tables:
            print(f"{table}: not in {runs}; what {recorded} has of it is kept", file=sys.stderr)
        if table in tables:
            body = tables[table]["page"]
            pages.append(f"## {table}\n\n{docstring(table)}\n\n{body}\n\n![{table}]({picture})\n")
    absent = [table for table in TABLES if table not in tables]
    missing = f"Not run yet: {', '.join(absent)}.\n\n" if absent else ""
    page = HEAD + "\n".join(claim_lines(tables)) + f"\n\n{missing}" + "\n".join(pages)
    recorded.write_text(as_text(tables))
    (out / "ablations.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
