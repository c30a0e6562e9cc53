"""A table of arms, bases and seeds: its runs, and what is refused before any of them."""

import pytest

from polaris_jax.ablate import Arm, Table, Tuning
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
        ({"overrides": {"data.problems": None}}, "data.problems=None: a config has no None"),
        ({"seeds": ()}, "arm 'x': seeds=(): needs at least one seed"),
        ({"arms": (Arm("x", seeds=(1, 1)),)}, "seeds=(1, 1): expected whole numbers, each of"),
        ({"seeds": ("1",)}, "seeds=('1',): expected whole numbers"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_mistakes_are_named(fields, words):
    with pytest.raises(ConfigError) as refused:
        Table(**{"arms": (Arm("x"),), "config": "c.py", **fields})
    assert words in str(refused.value)


TUNED = Table(
    config="c.py",
    bases={"a": {"warmstart.seed": 0}},
    arms=(
        Arm("plain"),
        Arm("all", {"batch.rescue": True}, before=("calibrate", "probe")),
        Arm("equal", tokens_of="all", tuned_as="plain"),
    ),
    tuning=Tuning(
        "optimizer.learning_rate", (1e-4, 3e-4), bases={"t": {"warmstart.seed": 9}}, seeds=(0, 1)
    ),
)


def test_tuning_runs_come_from_other_bases_and_the_counted_runs_wait_for_them():
    tried = TUNED.tuning_runs()
    assert len(tried) == 2 * 2 * 2  # arms that are tuned, values, seeds
    assert {run.base for run in tried} == {"t"}
    first = tried[0]
    assert first.name == "tuning/plain/0.0001/t-0"
    assert "--config.optimizer.learning_rate=0.0001" in first.flags()
    assert not first.counted and first.needs == ()
    plain, whole, equal = TUNED.runs()
    assert plain.needs == tuple(run.name for run in tried if run.arm == "plain")
    assert set(equal.needs) == {whole.name, *plain.needs}
    assert equal.budget_run == whole.name == "runs/all/a-0"
    assert not any("learning_rate" in flag for flag in plain.flags())
    assert "--config.warmstart.seed=9" in TUNED.base_run("t").flags()


@pytest.mark.parametrize(
    ("arms", "tuning", "words"),
    [
        ((Arm("x", tokens_of="y"),), None, "tokens_of='y': there is no such other arm"),
        ((Arm("x", tokens_of="x"),), None, "tokens_of='x': there is no such other arm"),
        ((Arm("x", tuned_as="z"),), None, "tuned_as='z': there is no such other arm"),
        (
            (Arm("x", tokens_of="y"), Arm("y", tokens_of="x")),
            None,
            "tokens_of='y': that arm's runs depend on others",
        ),
        (
            (Arm("x", tuned_as="y"), Arm("y", tuned_as="x")),
            None,
            "tuned_as='y': that arm is not tuned itself",
        ),
        ((Arm("x"),), Tuning("a.b", (1,), {"base": {}}), "'base' is counted; tune on other bases"),
        ((Arm("x"),), Tuning("a.b", (), {"t": {}}), "tuning.values=(): needs at least one"),
        ((Arm("x"),), Tuning("a b", (1,), {"t": {}}), "'a b': expected a config field"),
        ((Arm("x"),), Tuning("a.b", (1,), {}), "tuning.bases={}: needs at least one base"),
        ((Arm("x"),), Tuning("a.b", (1,), {"t": {}}, ()), "tuning.seeds=(): needs at least one"),
        ((Arm("x"),), Tuning("a.b", (1, 1.0), {"t": {}}), "a value occurs twice"),
        ((Arm("x"),), Tuning("a.b", (None,), {"t": {}}), "None is a folder's name, too"),
        ((Arm("x"),), Tuning("a.b", ([1],), {"t": {}}), "[1] is a folder's name, too"),
        (
            (Arm("x", seeds=(0,)), Arm("y", seeds=(0, 1), tokens_of="x")),
            None,
            "tokens_of='x': that arm has no run with seeds [1], which would be waited for",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_depends_on_nothing_there_is_refused(arms, tuning, words):
    with pytest.raises(ConfigError) as refused:
        Table(arms, config="c.py", tuning=tuning)
    assert words in str(refused.value)
