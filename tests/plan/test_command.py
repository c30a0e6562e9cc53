"""`polaris plan` from the command line to its verdict, on virtual CPU devices."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

from polaris_jax.__main__ import main
from polaris_jax.config import ConfigError, MeshSection
from polaris_jax.models.presets import preset
from polaris_jax.plan.command import nearest, search
from polaris_jax.plan.fit import Fit, Phase
from polaris_jax.plan.job import Setting, search_settings
from polaris_jax.rollout.kv.backends import choose_backend, smem_bytes

pytestmark = pytest.mark.xdist_group("plan_command")  # one worker makes what its tests share

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = [
    f"--config={ROOT / 'configs' / 'tiny_cpu.py'}",
    "--config.warmstart.num_layers=1",
    "--config.warmstart.hidden_size=32",
    "--config.warmstart.intermediate_size=64",
    "--config.warmstart.head_dim=8",
    "--config.rollout.slots=8",
    "--config.rollout.decode_steps=2",
    "--config.data.max_prompt_tokens=8",
    "--config.stages[0].max_response_tokens=24",
    "--config.stages[1].max_response_tokens=24",
    "--config.batch.row_len=64",
    "--config.batch.rows=8",
    "--config.mesh.fsdp=-1",
]
PROGRAMS = ["update: gradients", "update: optimizer", "weight_sync", "prefill", "decode"]


def plan(out, *args):
    """(exit code, plan.json) of the command, in this process."""
    code = main(["plan", *TINY, f"--out={out / 'plan.json'}", *args])
    return code, json.loads((out / "plan.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The command as a user calls it, in a process that knows nothing of virtual devices."""
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    result = subprocess.run(
        [
            *(sys.executable, "-m", "polaris_jax", "plan", *TINY, "--topology=cpu:8"),
            *("--config.mesh.context=2", "--config.rollout.tensor=2", f"--out={out}"),
        ],
        env=env | {"PYTHONPATH": str(ROOT)},
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(out.read_text())


def program(found, name):
    return next(p for p in found["programs"] if p["name"] == name)


def test_every_program_of_a_step_is_compiled_for_the_mesh(done):
    _, found = done
    names = [p["name"].split("/")[0] for p in found["programs"]]
    assert list(dict.fromkeys(names)) == PROGRAMS
    assert (found["devices"], found["setting"]["mesh"]["fsdp"]) == (8, 4)
    for compiled in found["programs"]:
        assert compiled["argument"] > 0
        assert compiled["hbm_bytes"] > 0


def test_state_is_split_over_the_devices(done):
    """A float32 parameter is 4 bytes: the update's program takes two sets of an eighth each.

    The small vocabulary does not divide by all axes, so that its table is split less.
    """
    _, found = done
    gradients = program(found, "update: gradients")
    parts = found["fit"]["phases"][0]["parts"]
    eighth = 4 * found["parameters"] / 8
    assert 2 * eighth <= gradients["argument"] <= 4 * eighth + 40_000
    assert 2 * eighth <= parts["moments"] <= 4 * eighth
    assert gradients["alias"] >= eighth  # the accumulator is donated


def test_gradients_are_scattered_and_weights_gathered(done):
    _, found = done
    kinds = {c["kind"] for c in program(found, "update: gradients")["collectives"]}
    assert {"all-gather", "reduce-scatter"} <= kinds


def test_the_head_is_counted_at_every_token_and_that_is_said(done):
    """Its loop ends with the last response token; a plan takes the rows as full of them."""
    text, found = done
    gradients = program(found, "update: gradients")
    assert gradients["bounded_loops"] == 1
    assert "counted to their last round: update: gradients 1" in text


def test_only_tensor_shards_talk_while_decoding(done):
    _, found = done
    assert {c["group"] for c in program(found, "decode")["collectives"]} == {2}


def test_what_is_printed_says_what_it_is(done):
    text, _ = done
    for words in ("FITS", "ESTIMATES", "not measured", "reduce-scatter", "of HBM", "weight_sync"):
        assert words in text
    assert re.search(r"  update 0\.\d*[1-9]", text)  # a small model's fraction of a second, not 0


def test_the_pool_takes_what_is_left_up_to_full_slots(done):
    _, found = done
    # 2 slots in each of 4 data shards, 2 pages of 16 tokens a sequence, and page 0.
    assert (found["fit"]["slots"], found["fit"]["pages"]) == (2, 5)
    assert found["fit"]["full_rows"] == 8


def test_a_pool_over_the_memory_is_refused_and_the_largest_named(tmp_path, capsys):
    code, found = plan(
        tmp_path, "--topology=cpu:1", "--hbm_gib=0.1", "--config.rollout.num_pages=200000"
    )
    assert code == 1
    assert not found["fits"]
    error = capsys.readouterr().err
    assert "the KV pool: 200000 pages a data shard" in error
    assert "nearest that fits: --config.rollout.num_pages=" in error


@pytest.fixture
def little_scalar_memory(monkeypatch):
    """As on a TPU, whose kernel refuses a page table that is too large; here, of more than 128
    bytes: 8 slots of a page each, not of two."""

    def choose(asked, sizes):
        if smem_bytes(sizes.rows, sizes.pages) > 128:
            page_size = sizes.page_size
            raise ConfigError(f"rollout.page_size={page_size}: the page table does not fit")
        return choose_backend(asked, sizes)

    monkeypatch.setattr("polaris_jax.rollout.programs.spec.choose_backend", choose)


def test_a_sampler_that_the_product_refuses_names_pages_that_fit(
    tmp_path, capsys, little_scalar_memory
):
    code, found = plan(tmp_path, "--topology=cpu:1")
    assert (code, found["fits"], found["fit"]) == (1, False, None)
    assert found["reasons"] == ["rollout.page_size=16: the page table does not fit"]
    assert found["nearest"] == "--config.rollout.page_size=32"
    assert "nearest that fits: --config.rollout.page_size=32" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        pytest.param(
            ["--config.rollout.attention=ragged"], "--config.rollout.attention=xla", id="a kernel"
        ),
        pytest.param(
            ["--config.mesh.tensor=8"], "--config.mesh.tensor=2", id="parts of a trainer's heads"
        ),
    ],
)
def test_what_the_product_refuses_names_what_it_takes(tmp_path, args, remedy):
    code, found = plan(tmp_path, "--topology=cpu:8", *args)
    assert (code, found["fit"]) == (1, None)
    assert remedy in found["nearest"]


@pytest.mark.slow
def test_a_setting_that_does_not_fit_names_one_that_does(tmp_path, capsys):
    """Eight rows a device are too many for this much memory; fewer are not."""
    args = ["--topology=cpu:1", "--config.batch.row_len=512"]
    _, large = plan(tmp_path, *args)
    enough = large["fit"]["phases"][0]["total"] / 0.9 / 2**30
    code, found = plan(tmp_path, *args, f"--hbm_gib={0.8 * enough:.9f}")
    assert code == 1
    assert "update: gradients" in found["reasons"][0]
    assert "--config.batch.rows=" in found["nearest"]
    error = capsys.readouterr().err
    assert "nearest that fits" in error
    before, after = error.split("compiling others in search of the nearest", 1)
    assert "cpu:1, mesh data 1 x" in before  # which setting the lines below it speak of
    assert "cpu:1, mesh data 1 x" in after


@pytest.mark.slow
def test_search_lists_what_fits_best_first(tmp_path, capsys):
    code, found = plan(tmp_path, "--topology=cpu:2", "--search")
    assert code == 0
    seconds = [s["estimate"]["step_s"] for s in found["settings"]]
    assert seconds == sorted(seconds)
    meshes = {tuple(s["setting"]["mesh"].values()) for s in found["settings"]}
    assert {(1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)} <= meshes
    assert "--config.mesh.context=2" in capsys.readouterr().out


DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Made:
    """Stands for an assessment."""

    setting: Setting
    fits: bool
    seconds: float

    @property
    def estimate(self):
        return types.SimpleNamespace(step_s=self.seconds)

    @property
    def fit(self):
        return Fit(1, (Phase("update", (("all", self.setting.rows),)),), 1, 1, ())


class MadeUpPlanner:
    """Fits where a device has at most 2 rows; the more context, the slower."""

    def __init__(self, most_rows=2):
        self.job = types.SimpleNamespace(model=preset("qwen3-4b"))
        self.devices = range(DEVICES)
        self.most_rows, self.compiled = most_rows, []

    def may_fit(self, setting):
        return setting.sampler_tensor > 1

    def update_fits(self, setting):
        return setting.rows / setting.row_shards <= self.most_rows

    def assess(self, setting):
        self.compiled.append(setting)
        rows = setting.rows / setting.row_shards
        return Made(setting, rows <= self.most_rows, setting.mesh.context + setting.mesh.tensor)


def test_best_first_and_nothing_compiled_that_cannot_fit():
    planner = MadeUpPlanner()
    found = search(planner, local_devices=4)
    assert found
    assert [m.seconds for m in found] == sorted(m.seconds for m in found)
    assert found[0].setting.mesh == MeshSection(1, DEVICES, 1, 1)
    assert all(setting.sampler_tensor > 1 for setting in planner.compiled)


def test_more_rows_are_not_tried_where_fewer_do_not_fit():
    planner = MadeUpPlanner(most_rows=0)
    assert search(planner, local_devices=4) == []
    assert {s.rows / s.row_shards for s in planner.compiled} == {1}


BASE = Setting(MeshSection(1, 8, 1, 1), 32, 2)


def test_a_leanest_setting_that_cannot_be_rules_out_nothing():
    class OfShortRows(MadeUpPlanner):
        """Rows do not divide into the chunks that much context needs."""

        def update_fits(self, setting):
            return super().update_fits(setting) if setting.mesh.context < 4 else None

    planner = OfShortRows(2)
    settings = search_settings(planner.job.model, devices=DEVICES, local_devices=4)
    found = nearest(BASE, settings, planner=planner)
    assert found is not None
    assert found.setting == Setting(MeshSection(1, 8, 1, 1), 16, 2)


@pytest.mark.parametrize(
    ("most_rows", "expected"),
    [
        pytest.param(2, Setting(MeshSection(1, 8, 1, 1), 16, 2), id="fewer rows"),
        pytest.param(0, None, id="none"),
    ],
)
def test_the_nearest_setting_that_fits(most_rows, expected):
    planner = MadeUpPlanner(most_rows)
    settings = search_settings(planner.job.model, devices=DEVICES, local_devices=4)
    found = nearest(BASE, settings, planner=planner)
    assert (found.setting if found else None) == expected
    assert all(planner.update_fits(setting) for setting in planner.compiled)


def test_a_run_that_drafts_needs_memory_for_its_verify_calls(tmp_path):
    asked = [
        "--topology=cpu:8",
        "--config.rollout.draft=history",
        "--config.rollout.draft_tokens=3",
    ]
    code, found = plan(tmp_path, *asked)
    (verify,) = [p for p in found["programs"] if p["name"] == "verify"]
    assert code == 0
    assert verify["total"] > 0 and verify["flops"] > 0
    names = [p["name"].partition("/")[0] for p in found["programs"]]
    assert list(dict.fromkeys(names)) == [*PROGRAMS[:-1], "verify", "decode"]
