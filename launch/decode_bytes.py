"""docs/results/decode_bytes.md: HBM bytes of one decode step, by compilation for absent TPUs.

usage: decode_bytes.py [--out=docs/results/decode_bytes.md] [--json=FILE] [--lines=N]

Qwen3-4B, 64 rows x 16,384 live tokens in each data shard, on one host of each chip, with weights on
one device and split over four, with keys and values in bfloat16 and in 8 bits; each with a small
and a large pool. Needs libtpu, which serves one process at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from polaris_jax.models.presets import preset
from polaris_jax.plan.compile import compile_with_text, device_bytes, hold_libtpu
from polaris_jax.plan.decode_bytes import KV, OTHER, WEIGHTS, DecodeBytes, decode_bytes
from polaris_jax.plan.hlo import program_traffic
from polaris_jax.plan.topologies import devices, parse_topology
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.kv.layouts import RAGGED_BLOCK_TOKENS
from polaris_jax.rollout.programs.abstract import decode_program
from polaris_jax.sharding import make_sampler_mesh

ROOT = Path(__file__).resolve().parents[1]
MODEL, ROWS, CONTEXT_TOKENS = "Qwen3-4B", 64, 16_384
HOSTS = ("v5p:2x2x1", "v6e:2x2")
TENSORS = (1, 4)
KV_DTYPES = ("auto", "int8")
PAGES = (1_000, 2_000)  # of a data shard; a v6e with the weights of tensor 1 takes no more
COLUMNS = (
    *("chip", "tensor", "kv_dtype", "needed: weights", "needed: KV"),
    *("moved: weights", "moved: KV", "moved: other", "moved / needed", "with filters"),
    "moved / auto's",
    *("all but KV / weights", "all-gathers, MB a step (largest)"),
    *(f"temporaries MB, {PAGES[0]:,} / {PAGES[1]:,} pages", "pool aliased"),
)
HEADER = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"
SIZES = SamplerConfig(
    slots=ROWS, page_size=64, max_len=CONTEXT_TOKENS, decode_steps=16, dtype="bfloat16"
)


def measure(host: str, tensor: int, pages: int, kv_dtype: str) -> dict[str, Any]:
    """One compiled program as a dict, JSON-able."""
    mesh = make_sampler_mesh(devices(parse_topology(host)), tensor=tensor)
    data = mesh.shape["data"]
    config = dataclasses.replace(
        SIZES, slots=ROWS * data, num_pages=pages * data, kv_dtype=kv_dtype
    )
    program = decode_program(preset(MODEL), config, mesh)
    compiled, text = compile_with_text(program.lower(), on_tpu=True)
    memory: Any = compiled.memory_analysis()
    counted = partial(
        decode_bytes, text, program.args, config=config, mesh=mesh, context_tokens=CONTEXT_TOKENS
    )
    plain, filtered = counted(), counted(branch="most")
    gathers = [
        c for c in program_traffic(text, devices=mesh.size).collectives if c.kind == "all-gather"
    ]
    return {
        "host": host,
        "tensor": tensor,
        "pages": pages,
        "kv_dtype": kv_dtype,
        "pool_bytes": device_bytes(program.args[1]),
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "weight_bytes": plain.weights,
        "live_bytes": plain.live,
        "moved_bytes": plain.moved,
        "ratio": plain.ratio,
        "ratio_without_kv": plain.ratio_without_kv,
        "ratio_with_filters": filtered.ratio,
        "pool_kernels": sum(
            line.times for line in plain.lines if line.kernel and line.owned.get(KV)
        ),
        "largest_all_gather_bytes": max((c.largest_bytes for c in gathers), default=0),
        "all_gather_bytes_a_step": sum(c.payload_bytes for c in gathers) / config.decode_steps,
        "lines": list(_lines(plain)),
    }


def _lines(found: DecodeBytes) -> Iterator[dict[str, Any]]:
    for where, lines in (("step", found.lines), ("call", found.outside)):
        for line in lines:
            yield {
                "once_a": where,
                "bytes": line.total,
                "times": line.times,
                "name": line.name,
                "owned": dict(line.owned),
                "origin": line.origin,
            }


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The whole document."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    made = f"jax {version('jax')}, libtpu {version('libtpu')}"
    head = f"""# HBM bytes of a decode step, by ahead-of-time compilation

{date.today()}, commit `{commit}`; made by `python launch/decode_bytes.py` on
{platform.machine()} without an accelerator: {made}.

NOTHING here ran on a TPU. {MODEL} in bfloat16, {ROWS} rows x {CONTEXT_TOKENS:,} live tokens in each
data shard, pages of {SIZES.page_size} tokens, calls of {SIZES.decode_steps} steps. Bytes are one
device's, for one step, in GB (1e9). With kv_dtype=int8 keys and values are 8-bit numbers.

Counted by walking the compiled HLO (`plan/decode_bytes.py`): every instruction's operands and
results in HBM, once each, a fusion's as a whole; of what is only sliced or gathered from, the
slice; of what is updated in place, the update, read and written; nothing of what lies in VMEM;
times the trips of the loops around it. What a call does once counts 1/{SIZES.decode_steps} in a
step.

From shapes, not from the text: the kernel `ragged_paged_attention` reads each row's live pages once
a layer, up to a whole block of {RAGGED_BLOCK_TOKENS} tokens. Its queries and outputs are operands
and results as any others; the new keys and values are written before it, by a scatter.

"Needed" is every weight once and every live key and value once (the table is tied to the head).
Draws are plain, as in training; "with filters" has a greedy row and all of top-k, min-p and top-p.
The KV of {ROWS} such rows is more than one device of tensor 1 holds, so pools of {PAGES[0]:,} and
{PAGES[1]:,} pages stand for it: neither bytes nor temporaries depend on the pool's size.

{HEADER}
"""
    small = [one for one in found if one["pages"] == PAGES[0]]
    large = [one for one in found if one["pages"] == PAGES[1]]
    exact = {(o["host"], o["tensor"]): o for o in small if o["kv_dtype"] == "auto"}
    rows = (
        _row(one, other, exact[one["host"], one["tensor"]])
        for one, other in zip(small, large, strict=True)
    )
    return head + "\n".join(rows) + "\n"


def _row(small: dict[str, Any], large: dict[str, Any], exact: dict[str, Any]) -> str:
    moved = small["moved_bytes"]
    share = sum(moved.values()) / sum(exact["moved_bytes"].values())
    aliased = all(one["alias_bytes"] >= one["pool_bytes"] for one in (small, large))
    cells = [
        small["host"].split(":")[0],
        str(small["tensor"]),
        small["kv_dtype"],
        *(f"{small[key] / 1e9:.3f}" for key in ("weight_bytes", "live_bytes")),
        *(f"{moved[owner] / 1e9:.3f}" for owner in (WEIGHTS, KV, OTHER)),
        *(f"{small[key]:.3f}" for key in ("ratio", "ratio_with_filters")),
        f"{share:.3f}",
        f"{small['ratio_without_kv']:.3f}",
        f"{small['all_gather_bytes_a_step'] / 1e6:.1f} "
        f"({small['largest_all_gather_bytes'] / 1e6:.2f})",
        f"{small['temporary_bytes'] / 1e6:.1f} / {large['temporary_bytes'] / 1e6:.1f}",
        "yes" if aliased else "NO",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "decode_bytes.md")
    parser.add_argument("--json", type=Path, help="also write all of it, by instruction")
    parser.add_argument("--lines", type=int, default=0, help="print so many instructions of each")
    args = parser.parse_args()
    hold_libtpu(partial(print, file=sys.stderr))
    found = []
    for host, tensor, kv_dtype, pages in itertools.product(HOSTS, TENSORS, KV_DTYPES, PAGES):
        one = measure(host, tensor, pages, kv_dtype)
        print(f"{host} tensor {tensor} {kv_dtype}, {pages} pages: {one['ratio']:.3f}", flush=True)
        for line in one["lines"][: args.lines]:
            print(f"  {line['bytes'] / 1e6:12,.1f} MB {line['name']} {line['origin']}")
        found.append(one)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    args.out.write_text(markdown(found))


if __name__ == "__main__":
    main()
