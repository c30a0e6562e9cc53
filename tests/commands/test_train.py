"""A later stage from another run's checkpoint: what is refused before anything is lost."""

import pytest
from etils import epath

from polaris_jax.commands.train import check_start
from polaris_jax.config import ConfigError, build_config

CONFIG = build_config({"stages": [{"steps": 1}, {"steps": 1}]})


def check(source, workdir, *, stage=1, overwrite=True):
    check_start(stage, epath.Path(source), CONFIG, epath.Path(workdir), overwrite=overwrite)


@pytest.mark.parametrize("stage", [-1, 2])
def test_a_stage_that_is_not_there(tmp_path, stage):
    with pytest.raises(ConfigError, match=f"--stage={stage}: the config has stages 0 to 1"):
        check(tmp_path / "a", tmp_path / "b", stage=stage, overwrite=False)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/6", "../run/checkpoints"])
def test_overwriting_does_not_delete_what_the_run_is_to_begin_from(tmp_path, place):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "6").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--overwrite would delete it"):
        check(workdir / place, workdir)
    check(workdir / place, workdir, overwrite=False)
    check(workdir / place, tmp_path / "other")


def test_a_link_to_it_is_the_same_and_another_folder_is_not(tmp_path):
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    (workdir / "checkpoints_of_old").mkdir()
    (tmp_path / "link").symlink_to(workdir / "checkpoints")
    with pytest.raises(ConfigError, match="--overwrite would delete it"):
        check(tmp_path / "link", workdir)
    check(workdir / "checkpoints_of_old", workdir)


def test_a_store_is_compared_by_name():
    with pytest.raises(ConfigError, match="--overwrite would delete it"):
        check("gs://bucket/run/checkpoints/6", "gs://bucket/run/")
    check("gs://bucket/run2/checkpoints", "gs://bucket/run")
