"""docs/results/plan.md: every full-size recipe on every pod, and what must be refused.

usage: plan_pods.py [--root=workdirs/plan] [--out=docs/results/plan.md] [--only=WORD] [--present]

Each case is one `polaris plan`, one after the other (libtpu serves one process at a time). A case
whose plan.json lies in --root is not compiled again: delete the file to have it redone. Exit code 1
when a case does not turn out as the recipe needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polaris_jax.plan.fit import gib

ROOT = Path(__file__).resolve().parents[1]
FITS = 0  # no number of full-length rows is asked for


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the tables.

    Attributes:
        config: a file of configs/, without .py.
        topology: as `polaris plan` takes it; the config's own division of that pod is planned.
        rows_at_least: full-length rows that must fit at once; None: it must be refused, with the
            nearest setting that fits.
        flags: what differs from that division.
        target: what the config takes after its colon.
        sparse_core: with launch/sparse_core.args.
    """

    config: str
    topology: str
    rows_at_least: int | None = FITS
    flags: tuple[str, ...] = ()
    target: str | None = None
    sparse_core: bool = False

    @property
    def name(self) -> str:
        parts = [self.config.removeprefix("polaris_"), self.topology.replace(":", "_")]
        parts += ["sparse_core"] if self.sparse_core else []
        return "_".join([*parts, *[f.split(".", 1)[-1].replace("=", "_") for f in self.flags]])

    @property
    def label(self) -> str:
        changes = [flag.removeprefix("--config.") for flag in self.flags]
        return ", ".join([self.config.removeprefix("polaris_"), *changes])

    def environment(self) -> dict[str, str]:
        """What the plan's process gets beside this one's."""
        args = (ROOT / "launch" / "sparse_core.args").read_text().split()
        return {"LIBTPU_INIT_ARGS": " ".join(args)} if self.sparse_core else {}

    def command(self, out: Path) -> list[str]:
        target = self.topology if self.target is None else self.target
        file = ROOT / "configs" / f"{self.config}.py"
        config = f"--config={file}:{target}" if target else f"--config={file}"
        flags = [config, f"--topology={self.topology}", *self.flags]
        return [sys.executable, "-m", "polaris_jax", "plan", *flags, f"--out={out}"]


MUST_FIT = (
    Case("polaris_4b", "v5p:2x2x4", 128),
    Case("polaris_4b", "v5p:2x2x4", 128, ("--config.mesh.context=4",)),
    Case("polaris_4b", "v5p:4x4x2", 256),
    Case("polaris_4b", "v6e:4x8", 80),
    Case("polaris_4b", "v6e:8x8", 160),
    Case("polaris_4b", "v5e:8x16", 160),
    Case("polaris_4b", "v5e:16x16", 320),
    Case("polaris_4b", "h100:8", 48),
    Case("polaris_4b", "h100:32", 200),
    Case("polaris_7b", "v5p:2x2x4"),
    Case("polaris_7b", "h100:8"),
    Case("polaris_1p7b", "v5p:2x2x4"),
    Case("polaris_1p7b", "h100:8"),
)
BEYOND = (
    Case("polaris_4b", "v5p:2x2x1"),
    Case("polaris_4b", "v6e:2x4"),
    Case("polaris_4b", "v5e:4x8"),
)
SPARSE_CORE = (
    Case("polaris_4b", "v5p:2x2x4", 128, sparse_core=True),
    Case("polaris_4b", "v6e:8x8", 160, sparse_core=True),
)
MUST_REFUSE = (
    Case("polaris_4b", "v5e:2x2", None, target=""),
    Case("polaris_4b", "v5e:16x16", None, ("--config.mesh.context=1",)),
    Case("polaris_4b", "h100:8", None, ("--config.batch.rows=64",)),
    Case("polaris_4b", "v5p:2x2x4", None, ("--config.rollout.num_pages=400000",)),
    Case(
        "polaris_4b",
        "v5p:2x2x4",
        None,
        ("--config.rollout.slots=1024", "--config.rollout.page_size=16"),
    ),
)


def run(case: Case, root: Path) -> dict[str, Any]:
    """The case's plan, compiled unless it is there already."""
    out = root / f"{case.name}.json"
    if not out.exists():
        print(f"== {case.name}", flush=True)
        part = out.with_suffix(".part")
        done = subprocess.run(case.command(part), check=False, env=os.environ | case.environment())
        if done.returncode not in (0, 1) or not part.exists():
            raise RuntimeError(f"{case.name}: polaris plan ended with exit code {done.returncode}")
        part.rename(out)
    return json.loads(out.read_text())


def shortfall(case: Case, plan: dict[str, Any]) -> str:
    """How a plan differs from what the recipe needs; empty: it does not."""
    if case.rows_at_least is None:
        if plan["fits"]:
            return f"{case.name}: fits, though it must be refused"
        # Advice is flags; without any it says that nothing was found.
        return "" if "--" in plan.get("nearest", "") else f"{case.name}: no setting that fits named"
    if not plan["fits"]:
        return f"{case.name}: does not fit: {plan['reasons'][0]}"
    rows = plan["fit"]["full_rows"]
    if rows < case.rows_at_least:
        return f"{case.name}: {rows} full-length rows, {case.rows_at_least} are needed"
    return ""


def markdown(tables: Sequence[tuple[str, Sequence[tuple[Case, dict[str, Any]]]]]) -> str:
    """The whole document."""
    lines = [
        "# What fits which pod, by ahead-of-time compilation",
        "",
        f"{date.today()}, commit `{_commit()}`; made by `python launch/plan_pods.py` on "
        f"{platform.machine()} without an accelerator: {', '.join(_versions())}.",
        "",
        "NOTHING here ran on a TPU or GPU. Bytes are what the compilers report for the product's "
        "own programs, added up over what is resident in each phase and judged against 90% of "
        "the HBM. Seconds and tokens/s are ESTIMATES from public figures of the chips: update at "
        "40% MFU, decode at 60% of the bandwidth, mean response 20,000 tokens (or half the "
        "budget), lengths lognormal, correlated within a prompt and cut at the budget; the rollout "
        "is that of the product's own schedulers: shards wait for the slowest, samples for pages, "
        "and devices for the host (host s). The KV pool is freed during the update; "
        "master weights and moments stay on the devices. GPU compilers set no limit and leave out "
        "cuDNN's workspace, CUDA's context and NCCL's buffers.",
    ]
    for title, rows in tables:
        if not rows:
            continue
        lines += ["", f"## {title}", "", MARKDOWN_HEADER]
        lines += [markdown_row(case.label, plan) for case, plan in rows]
    return "\n".join(lines) + "\n"


MARKDOWN_HEADER = (
    "| config | pod | devices | mesh (fsdp x context x tensor), rows | sampler tensor | "
    "update GiB (of HBM) | sampling without pool GiB | pool GiB a device | full rows | "
    "gradient collectives, GB on the wire | rollout s | of a balanced one | mean rows that fit, of "
    "those decoded | host s | update s | tokens/s a device |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def markdown_row(name: str, plan: Mapping[str, Any]) -> str:
    """One row of docs/results/plan.md, from a plan.json."""
    mesh, setting = plan["setting"]["mesh"], plan["setting"]
    cells = [
        name,
        plan["topology"],
        str(plan["devices"]),
        f"{mesh['fsdp']} x {mesh['context']} x {mesh['tensor']}, {setting['rows']}",
        str(setting["sampler_tensor"]),
    ]
    if not plan["fits"]:
        reason = plan["reasons"][0]
        near = plan.get("nearest")
        advice = f"; nearest that fits: {near}" if near else ""
        return "| " + " | ".join([*cells, f"does not fit: {reason}{advice}", *[""] * 10]) + " |"
    phases = {p["name"]: p for p in plan["fit"]["phases"]}
    update = max(phases[n]["total"] for n in phases if n.startswith("update"))
    pool = phases["sampling"]["parts"]["KV pool"]
    gradients = next(p for p in plan["programs"] if p["name"] == "update: gradients")
    kinds: dict[str, float] = {}
    for c in gradients["collectives"]:
        kinds[c["kind"]] = kinds.get(c["kind"], 0.0) + c["wire_bytes"]
    wire = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in kinds.items() if size > 5e7)
    e = plan["estimate"]
    cells += [
        f"{gib(update)} ({update / plan['chip']['hbm_bytes']:.0%})",
        gib(phases["sampling"]["total"] - pool),
        gib(pool),
        str(plan["fit"]["full_rows"]),
        wire or "none",
        f"{e['rollout_s']:,.0f}",
        f"{e['imbalance']:.2f}",
        f"{e['room_for']:,} of {e['sequences']:,}",
        f"{e['host_s']:,.0f}",
        f"{e['update_s']:,.0f}",
        f"{e['tokens_per_s_device']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _commit() -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or "unknown"


def _versions() -> Iterator[str]:
    for name in ("jax", "libtpu", "jax-cuda12-plugin"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"no {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT / "workdirs" / "plan")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "plan.md")
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument(
        "--present", action="store_true", help="compile nothing: the cases that are there"
    )
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    tables, missed, absent = [], [], []
    for title, cases in (
        ("Must fit", MUST_FIT),
        ("Beyond", BEYOND),
        ("Collectives on SparseCores (launch/sparse_core.args)", SPARSE_CORE),
        ("Must be refused, with the nearest setting that fits", MUST_REFUSE),
    ):
        chosen = [case for case in cases if args.only in case.name]
        if args.present:
            absent += [case for case in chosen if not (args.root / f"{case.name}.json").exists()]
            chosen = [case for case in chosen if case not in absent]
        rows = [(case, run(case, args.root)) for case in chosen]
        missed += [line for case, plan in rows if (line := shortfall(case, plan))]
        tables.append((title, rows))
    text = markdown(tables)
    if absent:
        names = "; ".join(f"{case.label} on {case.topology}" for case in absent)
        text += f"\n## Not compiled yet\n\n{names}.\n"
    args.out.write_text(text)
    print("\n".join([str(args.out), *missed]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
