"""A table of arms, bases and seeds: its runs, and what is refused before any of them."""

import pytest

from polaris_jax.ablate import Arm, Table
from polaris_jax.config import ConfigError

TABLE = Table(
    config="configs/tiny_cpu.py",
    overrides={"evaluate.every_steps": 5, "stages[0].steps": 3},
    bases={"a": {"warmstart.seed": 0}, "b": {"warmstart.seed": 1}},
    arms=(
        Arm("plain", {"batch.rescue": False}),
        Arm("probed", {"stages[0].steps": 9}, seeds=(7,), before=("probe",), config="c.py:x"),
    ),
    seeds=(0, 1),
)


def test_every_arm_runs_from_every_base_with_every_seed_and_early_seeds_first():
    assert [run.name for run in TABLE.runs()] == [
        "runs/plain/a-0",
        "runs/probed/a-7",
        "runs/plain/b-0",
        "runs/probed/b-7",
        "runs/plain/a-1",
        "runs/plain/b-1",
    ]


def test_an_arm_counts_after_its_base_and_the_base_after_the_table():
    plain, probed, *_ = TABLE.runs()
    assert plain.flags() == [
        "--config=configs/tiny_cpu.py",
        "--config.evaluate.every_steps=5",
        "--config.stages[0].steps=3",
        "--config.warmstart.seed=0",
        "--config.batch.rescue=false",
        "--config.seed=0",
    ]
    assert probed.flags()[:3] == [
        "--config=c.py:x",
        "--config.evaluate.every_steps=5",
        "--config.stages[0].steps=9",
    ]
    assert probed.before == ("probe",)
    assert TABLE.base_run("b").flags()[-1] == "--config.warmstart.seed=1"


def test_a_tuple_is_written_as_the_command_line_reads_it():
    run = Table((Arm("x", {"evaluate.budgets": (16, 32)}),), config="c.py").runs()[0]
    assert "--config.evaluate.budgets=(16,32)" in run.flags()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"arms": ()}, "at least one arm"),
        ({"arms": (Arm("x"), Arm("x"))}, "'x' occurs twice"),
        ({"arms": (Arm("../x"),)}, "'../x': a name of an arm or base is a folder's"),
        ({"bases": {}}, "at least one base"),
        ({"bases": {"a/b": {}}}, "'a/b': a name"),
        ({"figure": "best"}, "figure='best': expected mean or last"),
        ({"arms": (Arm("x", before=("train",)),)}, "before=['train']: expected prepare"),
        ({"overrides": {"seed": 1}}, "'seed': expected a config field other than seed"),
        ({"arms": (Arm("x", {"a b": 1}),)}, "'a b': expected a config field"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_mistakes_are_named(fields, words):
    with pytest.raises(ConfigError) as refused:
        Table(**{"arms": (Arm("x"),), "config": "c.py", **fields})
    assert words in str(refused.value)
