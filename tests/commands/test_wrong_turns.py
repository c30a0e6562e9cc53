"""A stranger's wrong turns: each gets the sentence that says what is wrong and what to do."""

import json
import shutil

import pytest

from polaris_jax.__main__ import main
from tests.support.micro_run import flags, make_base
from tests.support.stranger import random_gguf, random_qwen3

# Those that sample are slow. tests/stages/test_health.py has each cause on made-up responses.
samples = pytest.mark.slow
GOLDS = ("1", "2", "3", "4")
CODE = "def f(x):\n    return x + 1\nassert f(1) == 2"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories: usual, one that writes no tags, one whose template leaves the turn out."""
    folder = tmp_path_factory.mktemp("models")
    usual, _ = make_base(folder)
    bare, _ = make_base(folder / "bare", tags=False)
    mute = shutil.copytree(usual, folder / "mute")
    (mute / "chat_template.jinja").write_text("<|im_start|>user\nHello.<|im_end|>\n")
    return {"usual": usual, "bare": bare, "mute": mute}


def problems(path, golds):
    """Twelve problems with these golds, in turn."""
    rows = [
        {"id": f"p{i}", "problem": f"Start with {i}.", "answer": golds[i % len(golds)]}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(capsys, command, base, source, workdir, *more, status=0):
    """What a command prints, in one line."""
    words = [*flags(base, source), f"--workdir={workdir}", *more]
    assert main([command, *words]) == status
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


TURNS = {
    "wrong template": ("mute", GOLDS, [], ["the prompt does not contain the question",
                                           "look at the tokenizer's chat template"]),
    "no tags": ("bare", GOLDS, [], ["responses have no </think>", "set reward.mode=eval"]),
    "words": ("usual", ("Paris", "Rome"), [], ["of the golds are words", "answers are of another "
              "type than the gold answers", "a number for words"]),
    "code": ("usual", (CODE,), [], ["the reward cannot read the gold answers",
                                    "set reward.function"]),
    "budget": ("usual", GOLDS, ["--config.calibrate.max_response_tokens=3"],
               ["responses are cut by the token budget", "raise max_response_tokens"]),
    "too easy": ("usual", (list(GOLDS),), [], ["the problems are too easy for this policy",
                                               "take harder problems"]),
    "too hard": ("usual", ("77",), [], ["the problems are too hard for this policy",
                                        "take easier problems"]),
}  # fmt: skip


@samples
@pytest.mark.parametrize("turn", TURNS)
def test_calibrate_says_what_is_wrong(turn, models, tmp_path, capsys):
    model, golds, more, words = TURNS[turn]
    source = problems(tmp_path / "problems.jsonl", golds)
    out = said(
        capsys,
        "calibrate",
        models[model],
        source,
        tmp_path / "run",
        "--config.calibrate.n=2",
        *more,
    )
    assert [word for word in words if word not in out] == []


def test_a_model_that_knows_no_tags_is_named_before_it_samples(tmp_path, capsys):
    gguf, source = random_gguf(tmp_path / "m.gguf"), problems(tmp_path / "p.jsonl", GOLDS)
    long = ["--config.data.max_prompt_tokens=64", "--config.model.max_position_tokens=0"]
    out = said(capsys, "prepare", gguf, source, tmp_path / "run", *long)
    assert "warning: reward.mode=train reads the answer after </think>" in out
    assert "set reward.mode=eval for a model without thinking tags" in out


def test_golds_that_are_programs_need_a_reward_function(tmp_path, capsys):
    source = problems(tmp_path / "problems.jsonl", (CODE,))
    long = "--config.data.max_prompt_tokens=40"
    run = (random_qwen3(tmp_path / "model"), source, tmp_path / "run")
    out = said(capsys, "prepare", *run, long, status=2)
    assert "every one of 12 rows was left out" in out
    assert "set reward.function for answers such as programs" in out


@samples
def test_a_set_that_is_always_solved_is_not_trained_on(models, tmp_path, capsys):
    source = problems(tmp_path / "problems.jsonl", (list(GOLDS),))
    run = (models["usual"], source, tmp_path / "run")
    out = said(capsys, "calibrate", *run, "--config.calibrate.n=2")
    assert "0 kept" in out
    out = said(capsys, "train", *run, "--config.calibrate.n=2", status=2)
    assert "kept no problem, since the model solves all of them always; take harder" in out


@samples
def test_a_curated_set_of_another_source_is_refused(models, tmp_path, capsys):
    source = problems(tmp_path / "problems.jsonl", GOLDS)
    run = (models["usual"], source, tmp_path / "run")
    said(capsys, "calibrate", *run, "--config.calibrate.n=2", "--config.calibrate.preset=full")
    other = problems(tmp_path / "other.jsonl", ("9", "8"))
    out = said(capsys, "train", models["usual"], other, tmp_path / "run", status=2)
    assert "curated.parquet was made of other problems" in out
    assert "run `polaris calibrate` again" in out


@pytest.mark.parametrize("name", ["lr", "optimizer.lr"])
def test_a_name_of_other_trainers_is_understood(name, tmp_path, capsys):
    source = problems(tmp_path / "problems.jsonl", GOLDS)
    out = said(capsys, "train", tmp_path, source, tmp_path / "run", f"--config.{name}=1", status=2)
    assert "did you mean optimizer.learning_rate?" in out
