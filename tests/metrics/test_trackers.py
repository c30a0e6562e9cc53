"""What Weights & Biases and TensorBoard get of a run, beside its numbers."""

import json
import sys
import threading

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.metrics import MetricsWriter, trackers
from polaris_jax.metrics.glossary import known_names, meaning_of
from polaris_jax.metrics.trackers import CELL_CHARS, WandbNames, sample_table, stage_table
from tests.support import fake_wandb

ROW = {"question": "2+2?", "gold": "4", "text": "4", "reward": 1.0, "tokens": 3}
ROWS = [ROW | {"problem_id": p, "sample": s} for p in "ab" for s in range(3)]
STAGE = {
    "stage": 0,
    "first_step": 4,
    "last_step": None,
    "temperature": 1.4,
    "max_response_tokens": 96,
    "dropped_ids_count": 2,
    "decisions": [{"kind": "temperature", "value": 1.4, "reason": "probed", "table": [1]}],
}


def test_wandb_that_is_not_installed_is_a_config_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"metrics\.wandb=True.*pip install"):
        MetricsWriter(tmp_path, wandb=True)


def test_wandb_goes_on_in_the_run_of_its_workdir(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    for step in range(2):
        writer = MetricsWriter(tmp_path, wandb=True, first_step=step)
        writer.write(step, {"update/loss": 1.0, "none": None})
        writer.close()
    first, second = runs
    assert first.begun["id"] == second.begun["id"]
    assert first.begun["project"] == "polaris_jax"
    assert [first.begun[name] for name in ("name", "group", "tags")] == [None, None, None]
    assert first.finished and second.finished
    assert [*first.numbers, *second.numbers] == [
        {"update/loss": 1.0, "step": 0},
        {"update/loss": 1.0, "step": 1},
    ]


def test_wandb_knows_the_run_by_its_names_and_settings(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"seed": 3}}))
    runs = fake_wandb.install(monkeypatch)
    names = WandbNames("mine", "4b", "sizes", ("grpo", "h100"))
    MetricsWriter(tmp_path, wandb=True, names=names).close()
    begun = runs[0].begun
    assert begun["project"] == "mine" and begun["name"] == "4b" and begun["group"] == "sizes"
    assert begun["tags"] == ["grpo", "h100"] and begun["config"] == {"seed": 3}
    assert runs[0].metrics["*"] == {"step_metric": "step"}
    assert runs[0].metrics["eval/*"]["summary"] == "max,last"


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize("call", ["log", "define_metric", "finish"])
def test_wandb_that_fails_is_left_out_with_one_warning(call, tmp_path, monkeypatch, capsys):
    fake_wandb.install(monkeypatch)
    dead = BrokenPipeError(32, "Broken pipe")  # of the process that W&B starts
    monkeypatch.setattr(fake_wandb.FakeRun, call, raising(dead))
    writer = MetricsWriter(tmp_path, wandb=True, samples=1)
    for step in range(3):
        writer.write(step, {"update/loss": 1.0})
        writer.write_timing(step, {"time/save_s": 1.0})
        writer.show_samples(step, ROWS)
    writer.show_stages([STAGE])
    writer.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: Weights & Biases: BrokenPipeError: ")
    assert line.endswith("the run continues without it")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_a_table_that_wandb_refuses_is_a_warning(tmp_path, monkeypatch, capsys):
    fake_wandb.install(monkeypatch)
    monkeypatch.setattr(sys.modules["wandb"], "Table", raising(TypeError("mixed types")))
    MetricsWriter(tmp_path, wandb=True).close()
    assert "TypeError: mixed types" in capsys.readouterr().err


TIMED_OUT = fake_wandb.CommError("Run initialization has timed out")
NO_KEY = fake_wandb.AuthenticationError("API key is not valid")
BAD_NAME = fake_wandb.UsageError("Invalid project name 'a/b'")


@pytest.mark.parametrize(
    ("error", "resumed"),
    [(TIMED_OUT, False), (TIMED_OUT, True), (NO_KEY, True), (BAD_NAME, True)],
    ids=["outage", "outage at a resume", "key at a resume", "name at a resume"],
)
def test_wandb_keeps_no_run_from_its_start(error, resumed, tmp_path, monkeypatch, capsys):
    runs = fake_wandb.install(monkeypatch)
    if resumed:
        MetricsWriter(tmp_path, wandb=True).close()
    module = sys.modules["wandb"]
    with monkeypatch.context() as outage:
        outage.setattr(module, "init", raising(error))
        writer = MetricsWriter(tmp_path, wandb=True)
        writer.write(0, {"update/loss": 1.0})
        writer.close()
    assert str(error) in capsys.readouterr().err
    MetricsWriter(tmp_path, wandb=True).close()  # the next start asks again
    assert len({run.id for run in runs}) == 1
    assert len(runs) == 1 + resumed


@pytest.mark.parametrize("error", [NO_KEY, BAD_NAME, ValueError("a tag is too long")], ids=repr)
def test_what_wandb_refuses_of_a_new_run_is_a_config_error(error, tmp_path, monkeypatch):
    fake_wandb.install(monkeypatch)
    monkeypatch.setattr(sys.modules["wandb"], "init", raising(error))
    for _ in range(2):  # a refused start is no start
        with pytest.raises(ConfigError, match=r"metrics\.wandb=True: .*refuses.*wandb=False"):
            MetricsWriter(tmp_path, wandb=True)


def test_an_upload_without_end_is_not_waited_for(tmp_path, monkeypatch, capsys):
    fake_wandb.install(monkeypatch)
    monkeypatch.setattr(trackers, "FINISH_S", 0.05)
    ends = threading.Event()
    monkeypatch.setattr(fake_wandb.FakeRun, "finish", lambda self: ends.wait(60))
    MetricsWriter(tmp_path, wandb=True).close()
    ends.set()
    assert "its upload has not ended" in capsys.readouterr().err


def test_a_sweeps_agent_names_the_run(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    monkeypatch.setenv("WANDB_RUN_ID", "agent7")
    MetricsWriter(tmp_path, wandb=True).close()
    monkeypatch.setenv("WANDB_RUN_ID", "agent8")  # a resume under another agent's run
    MetricsWriter(tmp_path, wandb=True).close()
    assert [run.begun["id"] for run in runs] == ["agent7", "agent7"]


def test_wandb_gets_samples_stages_and_meanings(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    writer = MetricsWriter(tmp_path, wandb=True, samples=4)
    for step in range(12):
        writer.show_samples(step, ROWS)
    writer.show_stages([])
    writer.show_stages([STAGE])
    writer.show_stages([STAGE | {"last_step": 9}])
    writer.close()
    tables = runs[0].tables
    assert [step for step, _ in tables["tables/samples"]] == [0, 10]
    assert [step for step, _ in tables["tables/stages"]] == [4, 9]
    ((_, glossary),) = tables["tables/glossary"]
    named = [name for names, _, _ in glossary.data for name in names.split(", ")]
    assert set(named) == known_names()


def test_no_samples_if_none_are_asked_for(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    writer = MetricsWriter(tmp_path, wandb=True, samples=0)
    writer.show_samples(0, ROWS)
    assert set(runs[0].tables) == {"tables/glossary"}


def test_samples_are_of_many_problems_and_short():
    rows = [ROW | {"problem_id": "long", "sample": 0, "text": "x" * 9999}, *ROWS]
    table = sample_table(rows, 4)
    assert [row[:2] for row in table.rows] == [("long", 0), ("a", 0), ("b", 0), ("a", 1)]
    assert len(table.rows[0][4]) < CELL_CHARS + 10
    assert table.columns[-1] == "reason" and table.rows[0][-1] is None


def test_a_stage_has_its_reasons():
    table = stage_table([STAGE])
    assert table.rows == ((0, 4, None, 1.4, 96, 2, "temperature = 1.4: probed"),)
    assert len(table.columns) == len(table.rows[0])


def events(folder):
    """The summaries of the event files, as (step, summary value)."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(event.step, value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def test_tensorboard_gets_meanings_and_tables(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True, samples=1)
    for step in range(2):
        writer.write(step, {"rollout/reward_mean": 0.5, "own/number": 1.0})
    writer.show_samples(0, [ROWS[0] | {"text": "a | b\n<b>"}])
    writer.show_stages([STAGE])
    writer.close()
    found = events(tmp_path / "tensorboard")
    described = [
        (step, value.metadata.summary_description)
        for step, value in found
        if value.tag == "rollout/reward_mean"
    ]
    assert described == [(0, meaning_of("rollout/reward_mean")), (1, "")]
    texts = {v.tag: (step, v.tensor.string_val[0].decode()) for step, v in found if v.tensor.dtype}
    step, samples = texts["samples/text_summary"]
    assert step == 0
    assert "a &#124; b<br>&#60;b&#62;" in samples
    assert samples.count("\n") == 2
    assert texts["stages/text_summary"][0] == 4
