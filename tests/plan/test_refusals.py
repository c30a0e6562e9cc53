"""What must be refused, as issued: the whole of Qwen3-4B, from its own shapes.

Nothing is compiled: arguments are the programs' own, temporaries those that the H100s' compiler
reported (docs/results/plan.md). tests/plan/test_pods.py has the compilers' own words.
"""

import pathlib
import runpy

import jax
import pytest

from polaris_jax.config import build_config
from polaris_jax.plan.command import PlanOptions, plan
from polaris_jax.plan.compile import Compiled, device_bytes
from polaris_jax.plan.topologies import parse_topology

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 1 << 30
ROW_TOKENS = 53_248
ROW_BYTES, OTHER_BYTES = 15.4 * GIB, 6 * GIB  # temporaries of the gradients: of a row, and beside


@pytest.fixture
def nothing_compiled(monkeypatch):
    def compiled(program, **_):
        temporary = 0
        if program.name == "update: gradients":
            token_BT = program.args[2]["token_BT"]
            rows, tokens = token_BT.sharding.shard_shape(token_BT.shape)
            temporary = int(OTHER_BYTES + ROW_BYTES * rows * tokens / ROW_TOKENS)
        report = Compiled(program.name, argument=device_bytes(program.args), temporary=temporary)
        return report, ""

    monkeypatch.setattr("polaris_jax.plan.planner.compile_program", compiled)
    monkeypatch.setattr("polaris_jax.plan.command.hold_libtpu", lambda say: None)
    monkeypatch.setattr("polaris_jax.plan.command.larger_topologies", lambda topology: [])
    monkeypatch.setattr(
        "polaris_jax.plan.command.devices", lambda topology: jax.devices()[: topology.num_chips]
    )


@pytest.mark.parametrize(
    ("topology", "target", "fields", "reason", "nearest"),
    [
        pytest.param("v5e:2x2", "", {}, "update: gradients:", "none on v5e:2x2", id="stage 3"),
        pytest.param(
            *("h100:8", "h100:8", {"batch.rows": 64}),
            *("update: gradients: 14", "--config.batch.rows=16 "),
            id="eight rows a device",
        ),
        pytest.param(
            *("h100:8", "h100:8", {"rollout.num_pages": 400_000}),
            *("sampling:", "--config.rollout.num_pages="),
            id="a pool over the HBM",
        ),
    ],
)
def test_refused_with_the_nearest_setting_that_fits(
    nothing_compiled, topology, target, fields, reason, nearest
):
    config = runpy.run_path(str(ROOT / "configs" / "polaris_4b.py"))["get_config"](target)
    config.update_from_flattened_dict(fields)
    told = []
    found = plan(build_config(config), parse_topology(topology), PlanOptions(), say=told.append)
    assert found["row_len"] == ROW_TOKENS
    assert not found["fits"]
    assert found["reasons"][0].startswith(reason), found["reasons"]
    assert nearest in found["nearest"]
