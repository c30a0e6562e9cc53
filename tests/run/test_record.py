"""run.json: a default that has changed since keeps the value that the run recorded."""

import json

import pytest
from etils import epath

from polaris_jax.config import ConfigError, build_config, config_fields
from polaris_jax.run.record import (
    read_record,
    refuse_other_config,
    refuse_other_run,
    with_recorded_defaults,
)

# The defaults of `probe` before shares took the place of points.
FORMER = {
    "probe.start": 0.1,
    "probe.step": 0.1,
    "probe.n": 16,
    "probe.rgz_tolerance": 0.02,
    "probe.cez_tolerance": 0.1,
}


@pytest.fixture
def workdir(tmp_path):
    """A workdir whose run began with an earlier version, and set two fields itself."""
    fields = config_fields(build_config({"probe": {"problems": 8}})) | FORMER
    fields |= {"probe.cez_tolerance": 1.0, "rollout.max_logp_gap_mean": 0.0}
    for name in ("probe.rgz_share", "probe.cez_share", "guards.steps", "batch.share_prompts"):
        del fields[name]
    record = {"config": fields, "binding": sorted(fields), "starts": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return epath.Path(tmp_path)


def resumed(workdir, **probe):
    """The config that a resume goes by, and what is said."""
    said = []
    config = build_config(
        {"probe": {"problems": 8, **probe}, "rollout": {"max_logp_gap_mean": 0.05}}
    )
    config = with_recorded_defaults(workdir, config, said.append)
    record = read_record(workdir)
    assert record is not None
    refuse_other_config(workdir, record, config)
    return config, said


def test_a_resume_keeps_the_former_defaults_and_takes_the_users_own(workdir):
    config, said = resumed(workdir, cez_tolerance=1.0)
    fields = config_fields(config)
    assert {name: fields[name] for name in FORMER} == FORMER | {"probe.cez_tolerance": 1.0}
    assert fields["rollout.max_logp_gap_mean"] == 0.05  # free to change
    assert "probe.n=16, as this workdir's run began; the default is 32 now" in said
    # Versions without the field computed each prompt again: the same bits as before.
    assert fields["batch.share_prompts"] == "off"
    assert "batch.share_prompts=off, as this workdir's run began; the default is auto now" in said
    assert len(said) == 5


def test_a_value_of_the_users_own_is_still_refused(workdir):
    with pytest.raises(ConfigError, match=r"probe.n=16 there, 64 here"):
        resumed(workdir, cez_tolerance=1.0, n=64)
    with pytest.raises(ConfigError, match=r"probe.cez_tolerance=1.0 there, 0.0 here"):
        resumed(workdir)


def test_a_new_workdir_has_the_present_defaults(tmp_path):
    config = build_config({})
    assert with_recorded_defaults(tmp_path, config, pytest.fail) == config


@pytest.mark.parametrize("there", ["bfloat16", "float32"])
def test_a_resume_keeps_what_auto_became(tmp_path, there):
    """On another machine too; "bfloat16" was also the default of versions without auto."""
    fields = config_fields(build_config({"model": {"dtype": there}}))
    record = {"config": fields, "binding": sorted(fields), "starts": []}
    (tmp_path / "run.json").write_text(json.dumps(record, default=list))
    workdir = epath.Path(tmp_path)
    refuse_other_run(workdir, build_config({}), sections=("model",))
    config = with_recorded_defaults(workdir, build_config({}), lambda line: None)
    assert config.model.dtype == there
    other = "float32" if there == "bfloat16" else "bfloat16"
    with pytest.raises(ConfigError, match=f"model.dtype='{there}' there, '{other}' here"):
        refuse_other_run(workdir, build_config({"model": {"dtype": other}}), sections=("model",))


def test_what_versions_without_a_field_did_is_kept_by_every_later_resume(workdir):
    first, _ = resumed(workdir, cez_tolerance=1.0)
    record = read_record(workdir)
    assert record is not None
    record["config"] = json.loads(json.dumps(config_fields(first)))  # as a start writes it
    (workdir / "run.json").write_text(json.dumps(record))
    again, said = resumed(workdir, cez_tolerance=1.0)
    assert again == first
    assert config_fields(again)["batch.share_prompts"] == "off"
    assert not [line for line in said if "=[]" in line or "=()" in line]


def test_of_some_sections_alone(workdir):
    config = with_recorded_defaults(workdir, build_config({}), pytest.fail, sections=("model",))
    assert config == build_config({})
