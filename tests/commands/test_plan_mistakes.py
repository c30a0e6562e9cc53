"""Each mistake on `polaris plan`'s command line is one clear line on stderr and exit code 2."""

import pytest

from polaris_jax.__main__ import main

TINY = "--config=configs/tiny_cpu.py"
SEARCH = [TINY, "--topology=cpu:2", "--search"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([TINY], "--topology: needed"),
        (["--topology=cpu:8"], "--config: needed"),
        ([TINY, "--topology=v9:2x2"], "--topology=v9:2x2: expected v4"),
        ([TINY, "--topology=cpu:2", "--stage=2"], "--stage=2: stages count from 0"),
        ([TINY, "--topology=cpu:2", "--workdir=W"], "plan takes no --workdir; see"),
        ([TINY, "--topology=cpu:8", "--config.mesh.fsdp=3"], "mesh.fsdp=3"),
        ([TINY, "--topology=cpu:8", "--config.mesh.fsdp=-1", "--config.batch.rows=3"], "rows=3"),
        ([TINY, "--topology=cpu:2", "--config.mesh.fsdp=-1", "--config.rollout.tensor=4"], "=4"),
        ([TINY, "--topology=cpu:2", "--config.mesh.tensor=0"], "mesh.tensor=0: must be at least 1"),
        ([TINY, "--topology=cpu:2", "--out=none/here.json"], "--out=none/here.json: it lies"),
        (
            [TINY, "--topology=cpu:2", "--out=configs"],
            "--out=configs: it is a directory; name a file",
        ),
        ([*SEARCH, "--config.rollout.devices=1"], "rollout.devices=1: a plan knows"),
        ([*SEARCH, "--config.rollout.data=1"], "rollout.data=1: a plan lays a sampler over all"),
        ([TINY, "--topology=cpu:2", "--mean_response_tokens=1e6"], "at most at the stage's"),
        ([TINY, "--topology=cpu:2", "--config.model.path=Qwen/Qwen9"], "qwen3-4b"),
    ],
)
def test_one_clear_line(args, words, request, monkeypatch, capsys):
    monkeypatch.chdir(request.config.rootpath)
    assert main(["plan", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert words in error
    assert "\n" not in error
