"""Each mistake on the command line is one clear line on stderr and exit code 2."""

import errno
import os

import pytest

from polaris_jax.__main__ import main
from polaris_jax.commands.run import run_command
from polaris_jax.rollout import samplers

TINY = "--config=configs/tiny_cpu.py"
ON_8 = ["train", TINY, "--workdir=W", "--config.mesh.fsdp=8", "--config.batch.rows=8"]


@pytest.fixture(autouse=True)
def in_repository(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train"], "--config: needed"),
        (["train", TINY], "--workdir: needed"),
        (["train", "--config=configs/nope.py", "--workdir=W"], "configs/nope.py: there is no such"),
        (["train", TINY, "--workdir=W", "--config.rolout.slots=3"], "did you mean rollout.slots?"),
        (["train", TINY, "--workdir=W", "--config.rollout.slot=3"], "did you mean rollout.slots?"),
        (
            ["train", TINY, "--workdir=W", "--config.stages[0].step=3"],
            "did you mean stages[0].steps?",
        ),
        (["train", TINY, "--workdir=W", "--config.stages[7].steps=3"], "stages[7].steps: no such"),
        (["train", TINY, "--workdir=W", "--config.rollout.slots=abc"], "rollout.slots=abc"),
        (["train", TINY, "--workdir=W", "--config.rollout.top_p=0.9"], "rollout.top_p=0.9"),
        (["train", TINY, "--workdir=W", "--config.rollout.top_k=5"], "rollout.top_k=5"),
        (
            ["train", TINY, "--workdir=W", "--config.rollout.responses_per_prompt=1"],
            "at least 2 responses",
        ),
        (
            ["train", TINY, "--workdir=W", "--config.stages[0].max_response_tokens=99999"],
            "over model.max_position_tokens=192",
        ),
        # Known from the warm start's config: nothing is trained to find out.
        (
            [
                *("train", TINY, "--workdir=W", "--config.model.max_position_tokens=0"),
                *("--config.stages[0].max_response_tokens=99999", "--config.batch.row_len=0"),
            ],
            "over the checkpoint's",
        ),
        (["train", TINY, "--workdir=W", "--config.mesh.data=3"], "the mesh needs 3"),
        ([*ON_8, "--config.batch.rows=3"], "batch.rows=3"),
        ([*ON_8, "--config.model.attention=splash"], "model.attention=splash"),
        (["train", TINY, "--workdir=W", "--stage=7", "--from=."], "--stage=7: the config has"),
        (["train", TINY, "--wrkdir=x"], "train takes no --wrkdir; did you mean --workdir?"),
        (["train", "--wrkdir=x"], "train takes no --wrkdir; did you mean --workdir?"),
        (["train", "--config.seed=3"], "--config: needed"),
        (["train", TINY, "--workdir=W", "stray"], "unexpected argument"),
        (["train", TINY, "--workdir=W", "--stage=1"], "--stage=1: needs --from=CKPT too"),
        (["train", TINY, "--workdir=W", "--from=."], "--from=.: needs --stage=N too"),
        (["train", TINY, "--workdir=W", "--stage=x"], "--stage=x: must be a whole number"),
        (["train", TINY, "--workdir=W", "--stage=1", "--from=/none"], "no such checkpoint"),
        (["train", TINY, "--workdir=W", "--config.data.problems=none.jsonl"], "none.jsonl"),
        (["report", TINY, "--workdir=/none/here"], "no such directory"),
        (["generate", "--prompt=x"], "--model: needed; name a Hugging Face directory"),
        (["generate", "--model=x"], "--prompt: needed; give the user's text, like"),
        (["generate", "--model=x", "--prompt", " "], "--prompt: needed; give"),
        (["serve", "--model=x", "--api_key_env=NO_KEY_HERE"], "--api_key_env=NO_KEY_HERE: this"),
        (["evaluate", TINY, "--workdir=W", "--tag=a/b"], "--tag=a/b: it begins the names of files"),
        (["report", TINY, "--workdir=launch"], "holds no file of a run"),
        (["report", "launch", "docs"], "launch: holds no file of a run"),
        (["report", "launch", "docs", "--names=a"], "--names=a: 1 names for 2 runs"),
        (["report", "launch", "--out=README.md"], "--out=README.md: a file is there"),
        (["report"], "DIRS: needed; name a run's directory, or several"),
        (["report", "launch", "--group=3"], "report takes no --group; did you mean --groups?"),
        (
            ["evaluate", TINY, "--workdir=W", "--config.evaluate.problems=none.jsonl"],
            "error: evaluate.problems='none.jsonl': there is no such file",
        ),
        (
            ["prepare", "--config=configs/polaris_4b.py", "--workdir=W"],
            "data.problems='': nothing to prepare; name a file or a data set",
        ),
        (["generate", "--model=x", "--prompt=x", "--yarn_original=-1"], "yarn_original"),
        (["convert", "--from=x"], "--to: needed"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1] + value[-1:]),
)
def test_one_line_and_exit_2(args, words, capsys, tmp_path):
    args = [a.replace("--workdir=W", f"--workdir={tmp_path / 'w'}") for a in args]
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_bad_status_for_a_stopped_run_is_told_at_the_start(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("POLARIS_STOPPED_STATUS", "restart")
    assert main(["train", TINY, f"--workdir={tmp_path / 'w'}"]) == 2
    assert "POLARIS_STOPPED_STATUS='restart': an exit status" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_pool_too_small_for_a_stage_on_the_shards_that_there_are(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(samplers, "slot_shards", lambda _: 4)
    assert main([*ON_8[:2], f"--workdir={tmp_path}", "--config.rollout.num_pages=12"]) == 2
    assert "rollout.num_pages=12" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # refused before the workdir is claimed


@pytest.mark.parametrize(
    "command",
    [
        *("prepare", "calibrate", "probe", "train", "evaluate"),
        *("report", "convert", "generate", "grade"),
    ],
)
def test_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"polaris {command}" in out and "Example" in out and "Flags:" in out


def test_usage_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in ("prepare", "train", "generate"))
    assert main([]) == 2


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EISDIR, "move the directory away"),
        (errno.ENOSPC, "free some space and rerun"),
        (errno.ELOOP, "the link leads to itself"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_a_remedy(number, remedy, capsys):
    def command() -> int:
        raise OSError(number, os.strerror(number), "run/probe.json")

    assert run_command(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: run/probe.json: {os.strerror(number)}; ")
    assert remedy in line
