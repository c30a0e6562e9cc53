"""A run continues with the model that it began with, or not at all."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from etils import epath

from polaris_jax.__main__ import main
from polaris_jax.config import ConfigError, build_config, default_config
from polaris_jax.models.weights.identity import model_identity
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.record import began_with
from tests.support import micro_run

ONE_STEP = ("--config.stages[0].steps=1", "--config.stages[1].steps=1")
PARTS = {
    "model.safetensors": "weights",
    "tokenizer.json": "tokenizer",
    "chat_template.jinja": "chat template",
}


def swap(file: Path) -> bytes:
    """Changes a file, which can still be read; returns the former content."""
    content = file.read_bytes()
    changed = bytearray(content)
    if file.suffix == ".safetensors":
        changed[len(changed) // 2] ^= 1
    else:
        changed += b"\n"
    file.write_bytes(changed)
    return content


def kept(workdir: Path) -> dict[Path, bytes]:
    """Every file of a run but the record of its starts."""
    files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    return {p: b for p, b in files.items() if p.name != "run.json" and not p.name.endswith(".lock")}


@pytest.fixture(scope="module")
def base_and_problems(tmp_path_factory):
    return micro_run.make_base(tmp_path_factory.mktemp("base"))


HERE = ("--config.mesh.fsdp=8", "--config.batch.rows=8")  # this process's devices


def test_another_model_at_the_same_path_is_refused_and_nothing_is_lost(
    base_and_problems, tmp_path, capsys
):
    base, problems = base_and_problems
    workdir = tmp_path / "run"
    line = [*micro_run.flags(base, problems, *ONE_STEP), *HERE, f"--workdir={workdir}"]
    assert main(["train", *line]) == 0
    before = kept(workdir)
    for file, part in PARTS.items():
        former = swap(base / file)
        capsys.readouterr()
        try:
            assert main(["train", *line]) == 2
        finally:
            (base / file).write_bytes(former)
        assert f"another {part} than the run in workdir=" in capsys.readouterr().err
        assert kept(workdir) == before
    assert main(["train", *line]) == 0
    assert "already complete: 2 steps" in capsys.readouterr().out


def test_each_part_of_a_model_is_known_by_its_bytes(base_and_problems, tmp_path):
    base = Path(shutil.copytree(base_and_problems[0], tmp_path / "base"))
    before = model_identity(base)
    assert model_identity(base) == before
    for file, part in PARTS.items():
        former = swap(base / file)
        after = model_identity(base)
        assert [name for name in before if before[name] != after[name]] == [part]
        (base / file).write_bytes(former)
    (base / "README.md").write_text("not read")
    assert model_identity(base) == before


def test_a_run_of_an_earlier_version_takes_the_present_model_as_its_own(tmp_path):
    config = build_config(default_config())
    workdir_lib.claim(tmp_path, config).release()
    assert "identity" not in json.loads((tmp_path / "run.json").read_text())
    places = dict.fromkeys(("weights", "tokenizer", "prompts"), "model.path=m")
    workdir_lib.keep_identity(tmp_path, {"weights": "a", "tokenizer": "b"}, places=places)
    workdir_lib.claim(tmp_path, config).release()
    more = {"weights": "a", "tokenizer": "b", "prompts": "e"}  # a later version records more
    workdir_lib.keep_identity(tmp_path, more, places=places)
    assert json.loads((tmp_path / "run.json").read_text())["identity"] == more
    with pytest.raises(ConfigError, match=r"model\.path=m: another weights and tokenizer than"):
        workdir_lib.keep_identity(tmp_path, {"weights": "c", "tokenizer": "d"}, places=places)
    workdir_lib.claim(tmp_path, config, overwrite=True).release()
    workdir_lib.keep_identity(tmp_path, {"weights": "c", "tokenizer": "d"}, places=places)


MEASURES = {
    "calibrate": (
        "calibrate_progress",
        "--config.calibrate.n=2",
        "--config.calibrate.batch_prompts=4",
    ),
    "probe": (
        "probe_progress",
        "--config.probe.start=0.6",
        "--config.probe.step=0.2",
        "--config.probe.stop=1.0",
    ),
    "evaluate": ("responses", "--config.evaluate.n=2"),
}


@pytest.mark.parametrize(
    "command",
    [
        name if name == "calibrate" else pytest.param(name, marks=pytest.mark.slow)
        for name in MEASURES
    ],
)
def test_a_measurement_of_another_model_is_refused(command, base_and_problems, tmp_path, capsys):
    """Finished or cut off in its middle: no table of one model is taken for another's."""
    base, problems = base_and_problems
    name, *more = MEASURES[command]
    line = [
        command,
        *micro_run.flags(base, problems, *more, f"--config.evaluate.problems={problems}"),
        *HERE,
        f"--workdir={tmp_path}",
    ]
    assert main(line) == 0
    rows = tmp_path / f"{name}.jsonl"
    whole = rows.read_bytes()
    assert all("identity" not in json.loads(row) for row in whole.splitlines())
    for content in (whole, b"".join(whole.splitlines(keepends=True)[:2])):
        rows.write_bytes(content)
        before = kept(tmp_path)
        for file, part in PARTS.items():
            former = swap(base / file)
            capsys.readouterr()
            try:
                assert main(line) == 2
            finally:
                (base / file).write_bytes(former)
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert f"model.path={base}: another {part} than the rows of {rows} were made" in said
            assert "put the former files back, or delete that file" in said
            assert kept(tmp_path) == before
    assert main(line) == 0
    assert rows.read_bytes() == whole


def test_edited_problems_are_refused_by_name(base_and_problems, tmp_path, capsys):
    base, problems = base_and_problems
    own = tmp_path / "problems.jsonl"
    own.write_bytes(problems.read_bytes())
    line = [
        "calibrate",
        *micro_run.flags(base, own, *MEASURES["calibrate"][1:]),
        *HERE,
        f"--workdir={tmp_path / 'run'}",
    ]
    assert main(line) == 0
    own.write_text(own.read_text().replace('"answer": "1"', '"answer": "3"', 1))
    assert main(line) == 2
    assert f"data.problems={own}: another problems than the rows of" in capsys.readouterr().err


def test_what_calibrate_curated_is_trained_on_also_where_the_problems_are_named(
    base_and_problems, tmp_path, capsys
):
    base, problems = base_and_problems
    more = (*MEASURES["calibrate"][1:], "--config.calibrate.n=1", *ONE_STEP)
    line = micro_run.flags(base, problems, *more)
    for command in ("prepare", "calibrate"):
        assert main([command, *line, *HERE, f"--workdir={tmp_path}"]) == 0
    kept_count = json.loads((tmp_path / "calibrate.json").read_text())["kept"]
    assert 0 < kept_count < micro_run.PROBLEMS
    said = micro_run.finish(micro_run.start_train(tmp_path, line))
    curated = tmp_path / "curated.parquet"
    prepared = tmp_path / "problems.parquet"
    assert f"problems: {kept_count} from {curated} (made of {prepared})" in said
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["problem_set"] == "curated.parquet"
    curated.unlink()
    process = micro_run.start_train(tmp_path, line)
    assert "curated.parquet: the run in this workdir began with" in process.communicate()[0]
    assert process.returncode == 2


def test_two_of_a_command_do_not_write_the_same_files(base_and_problems, tmp_path):
    """The second is refused while the first samples; under another tag it is not."""
    base, problems = base_and_problems
    line = micro_run.flags(
        base, problems, "--config.evaluate.n=8", f"--config.evaluate.problems={problems}"
    )

    def start(*more: str):
        (process,) = micro_run.start_ranks("evaluate", tmp_path, [*line, *more])
        return process

    first = start()
    lock = tmp_path / ".evaluate.lock"
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)  # on a loaded machine it could end before the second begins
    second, other = start(), start("--tag=other")
    err = second.communicate()[1]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"`polaris evaluate` with --tag= already runs in it (pid {first.pid} on " in err
    for process in (first, other):
        assert process.communicate()[0] is not None
        assert process.returncode == 0
    rows = (tmp_path / "responses.jsonl").read_text().splitlines()
    assert len(rows) == 8 * micro_run.PROBLEMS


DIES = """
import os, signal

def score(response):
    if response.problem_id == "p0":  # as the kernel ends what takes too much memory
        os.kill(os.getpid(), signal.SIGKILL)
    return float(response.text.endswith("1}"))
"""


def test_a_run_says_what_its_bytes_depended_on_beside_its_seed(base_and_problems, tmp_path):
    """A worker that was killed, another decode kernel at the resume, metrics that were lost."""
    base, problems = base_and_problems
    (tmp_path / "own.py").write_text(DIES)
    workdir = tmp_path / "run"
    line = micro_run.flags(base, problems, f"--config.reward.function={tmp_path}/own.py:score")
    line += ["--config.stages[0].steps=2", "--config.stages[1].steps=1"]
    said = micro_run.finish(micro_run.start_train(workdir, line))

    def record() -> dict:
        return json.loads((workdir / "run.json").read_text())

    assert record()["deterministic"] is False
    assert f"decode kernels: {record()['numerics']['decode kernels']}\n" in said
    numerics = {**record()["numerics"], "decode kernels": "another compiler's"}
    (workdir / "run.json").write_text(
        json.dumps({**record(), "numerics": numerics, "deterministic": True})
    )
    metrics, timing = (workdir / f"{name}.jsonl" for name in ("metrics", "timing"))
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[1:]))
    timing.write_text("{ not JSON\n" + timing.read_text())
    said = micro_run.finish(micro_run.start_train(workdir, [*line, "--config.stages[1].steps=2"]))
    assert "metrics.jsonl has no line for 1 of the steps before the checkpoint" in said
    assert record()["missing_metrics"] == [0]
    assert "decode kernels differ from the run's last start: from step 3 on" in said
    assert record()["numerics_changes"][0]["step"] == 3
    assert record()["deterministic"] is False
    assert [json.loads(row)["step"] for row in metrics.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "files", [(), ("problems.parquet",), ("problems.parquet", "curated.parquet")]
)
def test_a_run_of_version_0_2_keeps_its_problems(tmp_path, named, files):
    """It read `data.problems` before the workdir's files, and recorded nothing."""
    for name in files:
        (tmp_path / name).write_bytes(b"")
    record = {"config": {"data.problems": "p.jsonl" if named else ""}}
    assert began_with(record, epath.Path(tmp_path)) == ("" if named or not files else files[-1])
    assert began_with(record | {"problem_set": "x"}, epath.Path(tmp_path)) == "x"
