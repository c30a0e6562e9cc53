"""The warm start's mark names the weights beside it, or is not there."""

import dataclasses
import json

import pytest

from polaris_jax.config import RunConfig, WarmstartSection
from polaris_jax.demo import base_model
from polaris_jax.system.files import as_place
from polaris_jax.system.progress import Progress

CONFIG = dataclasses.replace(RunConfig(), warmstart=WarmstartSection(steps=1, examples=1))


def test_a_kill_while_other_weights_are_written_leaves_no_mark(tmp_path, monkeypatch):
    done = tmp_path / "warmstart.json"
    done.write_text(json.dumps({"of": "another warm start"}))

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(base_model, "warm_start", lambda model, *_, **__: model)
    monkeypatch.setattr(base_model, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        base_model.make_base_model(CONFIG, as_place(tmp_path), Progress(enabled=False))
    assert not done.exists()
