"""Compiles for real chips: a two-layer cut of Qwen3-4B at full row length, all else as it is.

Compile time and temporaries do not depend on the number of layers: they are scanned.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from polaris_jax.models.presets import preset
from polaris_jax.models.weights.hf_config import config_json

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS = 2

# libtpu serves one process at a time: the command holds a file lock, the group keeps xdist's
# workers from waiting on it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libtpu")]


def needs(module, extra):
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"needs pip install 'polaris_jax[{extra}]'")


TPU, GPU = needs("libtpu", "tpu"), needs("jax_cuda12_plugin", "cuda12")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A directory with the config.json of the cut model."""
    directory = tmp_path_factory.mktemp("cut")
    model = dataclasses.replace(preset("qwen3-4b"), num_layers=LAYERS)
    (directory / "config.json").write_text(json.dumps(config_json(model, dtype="bfloat16")))
    return directory


def plan(cut, tmp_path, *args):
    out = tmp_path / "plan.json"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "polaris_jax", "plan", f"--out={out}"),
            *(f"--config={ROOT / 'configs' / 'polaris_4b.py'}", f"--config.model.path={cut}"),
            *("--config.batch.rows=0", *args),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr[-2000:]
    return result, json.loads(out.read_text())


def gradients(found):
    return next(p for p in found["programs"] if p["name"] == "update: gradients")


PODS = runpy.run_path(str(ROOT / "configs" / "_targets.py"))["PODS"]
PLAN_PODS = runpy.run_path(str(ROOT / "launch" / "plan_pods.py"))
MESHES = """
import sys
from polaris_jax.config import MeshSection
from polaris_jax.plan.compile import hold_libtpu
from polaris_jax.plan.topologies import devices, parse_topology
from polaris_jax.sharding import make_mesh

hold_libtpu(print)
for pod in sys.argv[1:]:
    name, context = pod.rsplit("/", 1)
    found = devices(parse_topology(name))
    mesh = make_mesh(MeshSection(context=int(context)), found)
    assert mesh.shape["context"] == int(context)
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in found)
"""


@TPU
def test_every_tpu_pod_of_the_configs_has_its_mesh():
    pods = [f"{name}/{pod.context}" for name, pod in PODS.items() if name.startswith("v")]
    assert len(pods) >= 8
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MESHES, *pods]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    ("topology", "context"),
    [
        pytest.param("v5p:2x2x1", 1, marks=TPU, id="v5p"),
        pytest.param("v6e:2x4", 4, marks=TPU, id="v6e context 4"),
        pytest.param("v4:2x2x2", 8, marks=TPU, id="v4 context 8"),
        pytest.param("h100:8", 1, marks=GPU, id="h100"),
        pytest.param("h200:8", 1, marks=GPU, id="h200"),
    ],
)
def test_rows_of_53248_tokens_fit(cut, tmp_path, topology, context):
    tensor = "--config.rollout.tensor=2" if topology.startswith("v6e") else ""
    args = [f"--topology={topology}", f"--config.mesh.context={context}"]
    _, found = plan(cut, tmp_path, *args, *([tensor] if tensor else []))
    assert found["fits"], found["reasons"]
    assert found["row_len"] == 53_248
    assert found["fit"]["full_rows"] >= found["devices"]
    program = gradients(found)
    assert program["kernel_bytes"] > 0  # attention by the platform's own kernel
    kinds = {c["kind"] for c in program["collectives"]}
    assert "all-gather" in kinds
    assert kinds & {"reduce-scatter", "all-reduce+slice"}
    step = found["decode_step"]
    assert step["weight_bytes"] <= step["moved_bytes"]["weights"]
    assert step["live_bytes"] <= step["moved_bytes"]["KV"]
    # Two layers only: logits weigh more here than in the whole model (test_decode_bytes.py).
    assert step["ratio"] < 1.6


@pytest.mark.timeout(3600)  # the nearest setting is searched by compiling up to a dozen
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=GPU if case.topology.startswith("h") else TPU, id=case.label)
        for case in PLAN_PODS["MUST_REFUSE"]
    ],
)
def test_what_no_device_holds_is_refused_with_the_nearest_setting_that_fits(case, tmp_path):
    """As issued, of the whole model: stage 3 on v5e:2x2 and without context shards on v5e:16x16;
    eight rows a device on H100s, which their compiler takes; a pool over the HBM; a page table over
    the scalar memory."""
    assert PLAN_PODS["shortfall"](case, PLAN_PODS["run"](case, tmp_path)) == ""
