"""The estimate meets the plans that were compiled, and its choice is the smallest that fits."""

import pathlib

import pytest

from polaris_jax.commands.config_file import load_config
from polaris_jax.config import build_config
from polaris_jax.models.presets import preset
from polaris_jax.plan.estimate import fits, layout, smallest_layout
from polaris_jax.plan.topologies import parse_topology

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 1 << 30


def compiled_plans():
    """(config, pod, mesh, sampler tensor, update GiB, sampling GiB) of docs/results/plan.md."""
    rows = []
    for line in (ROOT / "docs/results/plan.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 10 and cells[0][:2] in ("4b", "7b", "1p") and cells[6][:1].isdigit():
            shape = [int(size) for size in cells[3].split(",")[0].split(" x ")]
            update = float(cells[5].split()[0])
            rows.append((cells[0].split(",")[0], cells[1], shape, int(cells[4]), update, cells[6]))
    return rows


@pytest.mark.parametrize(
    ("name", "pod", "shape", "tensor", "update", "sampling"),
    compiled_plans(),
    ids=[f"{row[0]}-{row[1]}-{row[2][1]}-{i}" for i, row in enumerate(compiled_plans())],
)
def test_the_estimate_is_near_a_compiled_plan(name, pod, shape, tensor, update, sampling):
    config = build_config(load_config(str(ROOT / "configs" / f"polaris_{name}.py")))
    topology = parse_topology(pod)
    longest = max(stage.max_response_tokens for stage in config.stages)
    found = layout(
        preset(config.model.path),
        topology.platform,
        topology.chip(topology.num_chips),
        devices=topology.num_chips,
        context=shape[1],
        tensor=tensor,
        max_len=config.data.max_prompt_tokens + longest,
    )
    assert found.update_bytes / GIB == pytest.approx(update, rel=0.1)
    assert found.sampling_bytes / GIB == pytest.approx(float(sampling), rel=0.15)


def test_an_axis_that_does_not_divide_the_width_splits_nothing():
    topology = parse_topology("h100:8")
    sizes = {"context": 1, "tensor": 1, "max_len": 40_960}
    model, chip = preset("qwen3-4b"), topology.chip(8)  # its width is 2560
    one, three, four = (
        layout(model, "gpu", chip, devices=n, **sizes).update_bytes for n in (1, 3, 4)
    )
    assert four < three == one
    twelve = layout(model, "gpu", chip, devices=12, **sizes | {"context": 4}).update_bytes
    assert twelve < four  # a quarter of the weights, and of the row


def smallest(pod, model="qwen3-4b", max_len=40_960):
    topology = parse_topology(pod)
    chip, devices = topology.chip(topology.num_chips), topology.num_chips
    return smallest_layout(preset(model), topology, chip, devices=devices, max_len=max_len)


def test_plans_are_read():
    assert len(compiled_plans()) >= 15


def test_large_chips_need_no_parts_and_small_ones_do():
    assert (smallest("h100:8").context, smallest("h100:8").tensor) == (1, 1)
    small = smallest("v5e:16x16")
    assert small.context * small.tensor > 1
    assert fits(small, 40_960)
    assert smallest("v5e:2x2") is None


def test_slots_count_a_process():
    assert smallest("h100:32").slots == smallest("h100:8", max_len=8192).slots <= 8 * 32
