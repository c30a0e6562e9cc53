"""What is refused, and what is kept, before anything is lost: --stage, --from and --overwrite."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from etils import epath

from polaris_jax import loop
from polaris_jax.__main__ import main
from polaris_jax.config import ConfigError, build_config
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.owner import own
from polaris_jax.start import StartAt, check_start
from tests.support.parts import stage_at

CONFIG = build_config({"stages": [{"steps": 1}, {"steps": 1}]})


def check(source, workdir, *, stage=1, overwrite=True):
    start = StartAt(stage, epath.Path(source))
    check_start(start, CONFIG, epath.Path(workdir), overwrite=overwrite)


@pytest.fixture
def whole(monkeypatch):
    """Every checkpoint is whole, of a run in stage 0."""
    found = SimpleNamespace(
        latest_or_error=lambda: 6,
        facts=lambda step: {"arrays": {"step": []}},
        host=lambda step: {"stage": dataclasses.asdict(stage_at(0))},
    )
    monkeypatch.setattr("polaris_jax.start.Checkpointer.of", lambda path: found)


@pytest.mark.parametrize("stage", [-1, 2])
def test_a_stage_that_is_not_there(tmp_path, stage):
    with pytest.raises(ConfigError, match=f"--stage={stage}: the config has stages 0 to 1"):
        check(tmp_path / "a", tmp_path / "b", stage=stage, overwrite=False)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/6", "../run/checkpoints"])
def test_overwriting_does_not_delete_what_the_run_is_to_begin_from(tmp_path, whole, place):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "6").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--overwrite would delete it"):
        check(workdir / place, workdir)
    check(workdir / place, workdir, overwrite=False)
    check(workdir / place, tmp_path / "other")


def test_overwriting_for_a_checkpoint_that_is_not_whole_deletes_nothing(tmp_path):
    (tmp_path / "other" / "checkpoints" / "6").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        check(tmp_path / "other" / "checkpoints", tmp_path / "run")
    check(tmp_path / "other" / "checkpoints", tmp_path / "run", overwrite=False)


def test_a_link_to_it_is_the_same_and_another_folder_is_not(tmp_path, whole):
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    (workdir / "checkpoints_of_old").mkdir()
    (tmp_path / "link").symlink_to(workdir / "checkpoints")
    with pytest.raises(ConfigError, match="--overwrite would delete it"):
        check(tmp_path / "link", workdir)
    check(workdir / "checkpoints_of_old", workdir)


def test_a_store_is_compared_by_name(whole):
    with pytest.raises(ConfigError, match="--overwrite would delete it"):
        check("gs://bucket/run/checkpoints/6", "gs://bucket/run/")
    check("gs://bucket/run2/checkpoints", "gs://bucket/run")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts `polaris train`, which claims the workdir and leaves a checkpoint of its number."""
    starts = []

    def run(config, workdir, *, overwrite, **_):
        workdir_lib.claim(workdir, config, overwrite=overwrite).release()
        starts.append(workdir / "checkpoints" / str(len(starts)))
        starts[-1].mkdir(parents=True)
        return SimpleNamespace(done=True, guards=SimpleNamespace(hopeless=False))

    monkeypatch.setattr(loop, "run", run)

    def call(launch: str | None, *flags: str) -> tuple[int, list[str]]:
        """Exit status, and the checkpoints that are there afterwards."""
        if launch is None:
            monkeypatch.delenv("POLARIS_LAUNCH", raising=False)
        else:
            monkeypatch.setenv("POLARIS_LAUNCH", launch)
        status = main(["train", "--config=configs/tiny_cpu.py", f"--workdir={tmp_path}", *flags])
        return status, sorted(path.name for path in (tmp_path / "checkpoints").glob("*"))

    return call


@pytest.mark.parametrize("flag", ["--overwrite", "--overwrite=true", "-overwrite"])
def test_a_line_that_a_scheduler_repeats_overwrites_once(start, capsys, flag):
    assert start(None) == (0, ["0"])
    assert start("slurm-7", flag) == (0, ["1"])
    assert "left out" not in capsys.readouterr().out
    for kept in (["1", "2"], ["1", "2", "3"]):
        assert start("slurm-7", flag) == (0, kept)
        out = capsys.readouterr().out
        assert out.count("--overwrite is left out: POLARIS_LAUNCH=slurm-7 began this run") == 1
    assert start("slurm-8", flag) == (0, ["4"])  # another launch asks anew


def test_without_a_launch_overwrite_is_what_it_was(start):
    assert start(None, "--overwrite") == (0, ["0"])
    assert start(None, "--overwrite") == (0, ["1"])


def test_overwrite_deletes_nothing_if_nobody_can_tell_who_began_the_run(start, tmp_path, capsys):
    assert start("slurm-7") == (0, ["0"])
    assert start("", "--overwrite") == (2, ["0"])
    assert "POLARIS_LAUNCH='': with --overwrite a restart would" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{")
    assert start("slurm-7", "--overwrite") == (2, ["0"])
    assert "restore the file, or delete it to begin anew" in capsys.readouterr().err
    (tmp_path / "run.json").unlink()
    assert start("slurm-7", "--overwrite") == (0, ["1"])
    assert json.loads((tmp_path / "run.json").read_text())["starts"][0]["launch"] == "slurm-7"


def test_a_workdir_in_use_may_be_free_for_a_restart(start, tmp_path, capsys):
    """Exit status 2 tells a scheduler that no restart can mend it."""
    assert start(None)[0] == 0
    busy = "`polaris train` already runs in it"
    held = own(epath.Path(tmp_path / ".lock"), busy=busy, remedy="wait", writes=())
    assert [start(launch)[0] for launch in (None, "slurm-7")] == [2, 1]
    held.release()
    assert "already runs in it" in capsys.readouterr().err
