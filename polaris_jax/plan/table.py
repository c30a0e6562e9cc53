"""A plan as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polaris_jax.plan.compile import Compiled
from polaris_jax.plan.decode_bytes import DecodeBytes
from polaris_jax.plan.fit import gib
from polaris_jax.plan.planner import Assessment, Planner


def plan_json(planner: Planner, assessment: Assessment) -> dict[str, Any]:
    """All of one assessment as JSON-able data."""
    job, topology = planner.job, planner.topology
    return {
        "topology": topology.name,
        "devices": len(planner.devices),
        "chip": dataclasses.asdict(planner.chip),
        "model": job.config.model.path or "warm start",
        "parameters": job.model.num_parameters,
        "stage": job.stage,
        "row_len": job.row_len,
        "max_len": job.max_len,
        "fits": assessment.fits,
        "reasons": list(assessment.reasons),
        "setting": dataclasses.asdict(assessment.setting),
        "flags": assessment.setting.flags(),
        "residency": dataclasses.asdict(planner.residency),
        "programs": [_program_json(compiled, assessment.flops) for compiled in assessment.compiled],
        "fit": None
        if assessment.fit is None
        else {
            "budget_bytes": assessment.fit.budget,
            "pages": assessment.fit.pages,
            "full_rows": assessment.fit.full_rows,
            "slots": assessment.slots,
            "phases": [
                {"name": p.name, "total": p.total, "parts": dict(p.parts)}
                for p in assessment.fit.phases
            ],
        },
        "decode_step": None
        if assessment.decode_step is None
        else _decode_step_json(assessment.decode_step),
        "assumptions": {
            "mean_response_tokens": job.mean_response_tokens,
            "mean_prompt_tokens": job.mean_prompt_tokens,
            **dataclasses.asdict(planner.efficiency),
        },
        "estimate": None
        if assessment.estimate is None
        else dataclasses.asdict(assessment.estimate),
    }


def _decode_step_json(step: DecodeBytes) -> dict[str, Any]:
    return {
        "rows": step.rows,
        "context_tokens": step.context_tokens,
        "weight_bytes": step.weights,
        "live_bytes": step.live,
        "moved_bytes": step.moved,
        "ratio": step.ratio,
    }


def _program_json(compiled: Compiled, flops: Mapping[str, float]) -> dict[str, Any]:
    fields = {f.name: getattr(compiled, f.name) for f in dataclasses.fields(compiled)}
    traffic = fields.pop("traffic")
    return {
        **fields,
        "total": compiled.total,
        "flops": flops.get(compiled.name),
        "hbm_bytes": traffic.hbm_bytes if traffic else None,
        "kernel_bytes": traffic.kernel_bytes if traffic else None,
        "dynamic_loops": traffic.dynamic_loops if traffic else None,
        "bounded_loops": traffic.bounded_loops if traffic else None,
        "collectives": [
            {**dataclasses.asdict(c), "wire_bytes": c.wire_bytes}
            for c in (traffic.collectives if traffic else ())
        ],
    }


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in columns as wide as their widest cell."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plan_text(plan: Mapping[str, Any]) -> str:
    """The printed plan, from `plan_json`."""
    hbm = plan["chip"]["hbm_bytes"]
    head = (
        f"{plan['model']} ({_parameters(plan['parameters'])}), stage {plan['stage']}, "
        f"rows of {plan['row_len']:,} tokens, on {plan['topology']}: {plan['devices']} devices of "
        f"{gib(hbm)} GiB\n{_setting_line(plan['setting'])}"
    )
    steps = merged(plan["programs"])
    parts = [
        head,
        "Programs, a device (GiB; FLOPs from shapes, loops counted in full; of kernels all "
        "operands, though a paged one reads its pages only):\n"
        + _programs(steps, hbm)
        + _early_ends(steps),
        "Collectives, a device, one execution (ring bytes on the wire):\n" + _collectives(steps),
    ]
    if plan["decode_step"]:
        parts.append(_decode_step(plan["decode_step"]))
    if plan["fit"]:
        parts.append(_phases(plan))
    parts.append(_verdict(plan))
    if plan["estimate"]:
        parts.append(_estimate(plan))
    return "\n\n".join(parts)


def merged(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The programs with those that run one after the other as one (`weight_sync/PATH`): memory of
    the largest, traffic of all."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(item["name"].split("/")[0], []).append(item)
    found = []
    for name, parts in groups.items():
        largest = dict(max(parts, key=lambda part: part["total"]))
        if len(parts) > 1:
            largest["name"] = f"{name} ({len(parts)} steps, the largest)"
            largest["refusal"] = next((p["refusal"] for p in parts if p["refusal"]), "")
            for key in ("hbm_bytes", "kernel_bytes"):
                largest[key] = sum(part[key] or 0 for part in parts)
            largest["collectives"] = _by_kind([c for part in parts for c in part["collectives"]])
        found.append(largest)
    return found


def _by_kind(collectives: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    total: dict[tuple[str, int, int, int], dict[str, Any]] = {}
    for c in collectives:
        key = (c["kind"], c["group"], c["span"], c["hosts"])
        if key not in total:
            total[key] = dict(c)
            continue
        for name in ("executed", "payload_bytes", "wire_bytes"):
            total[key][name] += c[name]
    return list(total.values())


def _setting_line(setting: Mapping[str, Any]) -> str:
    m = setting["mesh"]
    return (
        f"mesh data {m['data']} x fsdp {m['fsdp']} x context {m['context']} x tensor "
        f"{m['tensor']}, {setting['rows']} rows a microbatch, sampler tensor "
        f"{setting['sampler_tensor']}"
    )


def _programs(items: Sequence[Mapping[str, Any]], hbm: int) -> str:
    header = (
        "program arguments temporaries outputs aliased total of_HBM peak TFLOP HBM_GB kernels_GB "
        "wire_GB"
    )
    rows = []
    for p in items:
        if p["refusal"]:
            rows.append([p["name"], "refused", *[""] * 10])
            continue
        wire = sum(c["wire_bytes"] for c in p["collectives"])
        rows.append(
            [
                p["name"],
                *(gib(p[key]) for key in ("argument", "temporary", "output", "alias", "total")),
                f"{p['total'] / hbm:.0%}",
                gib(p["peak"]) if p["peak"] else "-",
                f"{p['flops'] / 1e12:.3g}" if p["flops"] else "-",
                f"{p['hbm_bytes'] / 1e9:.3g}",
                f"{p['kernel_bytes'] / 1e9:.3g}" if p["kernel_bytes"] else "-",
                f"{wire / 1e9:.3g}",
            ]
        )
    return grid([word.replace("_", " ") for word in header.split()], rows)


def _early_ends(items: Sequence[Mapping[str, Any]]) -> str:
    """The loops of which the worst case is counted: a gradient's head ends with the last token that
    counts, a decode call with the last live sequence."""
    found = [f"{p['name']} {p['bounded_loops']}" for p in items if p["bounded_loops"]]
    if not found:
        return ""
    return f"\nLoops that may end early, here counted to their last round: {', '.join(found)}"


def _collectives(items: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            *(p["name"], c["kind"], str(c["group"]), str(c["span"]), str(c["hosts"])),
            *(f"{c['executed']:.0f}", f"{c['wire_bytes'] / 1e6:,.1f}"),
        ]
        for p in items
        for c in p["collectives"]
    ]
    if not rows:
        return "none"
    return grid(["program", "kind", "group", "span", "hosts", "executed", "MB"], rows)


def _decode_step(step: Mapping[str, Any]) -> str:
    moved = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in step["moved_bytes"].items())
    return (
        f"A decode step, {step['rows']} rows of {step['context_tokens']:,} live tokens, moves in "
        f"HBM a device, GB: {moved}; that is {step['ratio']:.3f} times its weights "
        f"({step['weight_bytes'] / 1e9:.3g}) and live keys and values "
        f"({step['live_bytes'] / 1e9:.3g})"
    )


def _phases(plan: Mapping[str, Any]) -> str:
    hbm, fit = plan["chip"]["hbm_bytes"], plan["fit"]
    rows = []
    for phase in fit["phases"]:
        rows.append([phase["name"], gib(phase["total"]), f"{phase['total'] / hbm:.0%}"])
        rows += [[f"  {name}", gib(size), ""] for name, size in phase["parts"].items()]
    return f"Resident in each phase, GiB a device (budget {gib(fit['budget_bytes'])}):\n" + grid(
        ["phase", "GiB", "of HBM"], rows
    )


def _verdict(plan: Mapping[str, Any]) -> str:
    if not plan["fits"]:
        reasons = "\n".join(f"  {reason}" for reason in plan["reasons"])
        return f"DOES NOT FIT\n{reasons}"
    fit = plan["fit"]
    largest = max(p["total"] for p in fit["phases"]) / plan["chip"]["hbm_bytes"]
    shards = plan["devices"] // plan["setting"]["sampler_tensor"]
    return (
        f"FITS: the largest phase takes {largest:.0%} of the HBM; KV pool "
        f"{fit['pages']:,} pages a data shard ({shards} of them), {fit['full_rows']} sequences "
        f"of full length ({plan['max_len']:,} tokens) at once; {fit['slots']} slots a data shard"
    )


def _estimate(plan: Mapping[str, Any]) -> str:
    e, a = plan["estimate"], plan["assumptions"]
    return (
        f"ESTIMATES of one step, not measured (mean response {a['mean_response_tokens']:,.0f} "
        f"tokens, update at {a['mfu']:.0%} MFU, decode at {a['bandwidth']:.0%} of the bandwidth):\n"
        f"  rollout {_seconds(e['rollout_s'])}: {e['imbalance']:.2f} times a balanced one "
        f"({_seconds(e['balanced_s'])}), since shards wait for the slowest and samples for pages "
        f"({e['preemptions']:.0f} preempted and {e['moves']:.0f} moved on a host); devices wait "
        f"{_seconds(e['host_s'])} for the host\n"
        f"  balanced: {e['sequences']} sequences at once (the pools hold "
        f"{e['room_for']} of mean length), "
        f"{e['decode_steps']:,.0f} decode steps; keys and values {_seconds(e['kv_s'])}, weights "
        f"{_seconds(e['weights_s'])}, arithmetic {_seconds(e['decode_compute_s'])}, collectives "
        f"{_seconds(e['decode_collective_s'])}, prefill {_seconds(e['prefill_s'])}\n"
        f"  with rollout.draft=history: {_drafted(e)}\n"
        f"  update {_seconds(e['update_s'])}: arithmetic {_seconds(e['update_compute_s'])}, memory "
        f"{_seconds(e['update_hbm_s'])}, collectives {_seconds(e['update_collective_s'])} "
        f"({e['update_mfu']:.0%} MFU)\n"
        f"  weight sync {_seconds(e['sync_s'])}\n"
        f"  step {_seconds(e['step_s'])}, {e['tokens_per_s']:,.0f} response tokens/s, "
        f"{e['tokens_per_s_device']:,.0f} a device"
    )


def _drafted(estimate: Mapping[str, Any]) -> str:
    shares = ", ".join(
        f"{_seconds(seconds)} at {rate}" for rate, seconds in estimate["drafted_s"].items()
    )
    return (
        f"rollout {shares}, the chance that a drafted token is accepted behind accepted ones; "
        f"{_seconds(estimate['tail_s'])} of it have few enough live rows"
    )


def _parameters(count: int) -> str:
    return f"{count / 1e9:.3f} B parameters" if count >= 1e8 else f"{count / 1e6:.3f} M parameters"


def _seconds(seconds: float) -> str:
    """Seconds as text: a whole number from 10 s on, two significant digits below."""
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
