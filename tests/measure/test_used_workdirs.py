"""prepare, calibrate and probe leave the workdir of another config's run as it is."""

import dataclasses

import pytest

from polaris_jax.commands.prepare import prepare
from polaris_jax.config import ConfigError, build_config, default_config
from polaris_jax.data.problem_sets import CURATED
from polaris_jax.measure.calibrate import calibrate
from polaris_jax.measure.probe import probe
from polaris_jax.run.workdir import claim
from polaris_jax.system.progress import Progress

CONFIG = default_config()
CONFIG.model.dtype = "float32"  # decided, as in the record of a run
FIELDS = [("model", "path"), ("data", "max_prompt_tokens"), ("warmstart", "seed")]


@pytest.mark.parametrize("command", [prepare, calibrate, probe], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("section", "field"), FIELDS, ids=".".join)
def test_another_config_is_refused(command, section, field, tmp_path):
    config = build_config(CONFIG)
    claim(tmp_path, config).release()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    value = {"path": "another"}.get(field, 77)
    changed = dataclasses.replace(getattr(config, section), **{field: value})
    other = dataclasses.replace(config, **{section: changed})
    with pytest.raises(ConfigError, match=f"holds a run of another config: {section}.{field}="):
        command(other, tmp_path, progress=Progress(enabled=False))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoints_calibration_does_not_replace_what_a_run_trains_on(tmp_path):
    config = build_config(CONFIG)
    claim(tmp_path, config, problem_set=CURATED).release()
    with pytest.raises(ConfigError, match=r"trains on curated\.parquet.*add --tag=NAME"):
        calibrate(config, tmp_path, progress=Progress(enabled=False), checkpoint="latest")
    with pytest.raises(ConfigError, match=r"--checkpoint=latest: .* does not exist"):
        calibrate(
            config, tmp_path, progress=Progress(enabled=False), checkpoint="latest", tag="after"
        )
