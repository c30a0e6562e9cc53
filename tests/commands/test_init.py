"""`polaris init`: what it writes, and what it says instead."""

import errno
import json

import jax
import pytest

from polaris_jax.__main__ import main
from polaris_jax.commands.config_file import load_config
from polaris_jax.config import ConfigError, build_config
from polaris_jax.data.problems import write_problems
from tests.support.stranger import as_gsm8k, random_qwen3


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with a model and a set in GSM8K's form."""
    folder = tmp_path_factory.mktemp("stranger")
    random_qwen3(folder / "model")
    as_gsm8k(folder / "gsm8k")
    return folder


@pytest.fixture(autouse=True)
def there(here, monkeypatch):
    monkeypatch.chdir(here)


def init(file, *more, data="gsm8k.jsonl"):
    return main(["init", file, "--model=model", f"--data={data}", *more])


def rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_first_responses_are_sampled_by_a_sampler_of_this_machine(monkeypatch):
    asked = []

    def sampled(config, *_, **__):
        asked.append(config.rollout)
        raise ConfigError("enough")

    monkeypatch.setattr("polaris_jax.measure.first_look.sample_some", sampled)
    assert init("far.py", "--hardware=v5e:2x4") == 2
    (rollout,) = asked
    devices = jax.local_device_count()
    assert (rollout.tensor, rollout.slots % devices) == (1, 0)
    assert 64 <= rollout.slots < 64 + devices


def test_a_device_that_cannot_hold_the_model_samples_nothing(monkeypatch, capsys):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert init("small.py") == 0
    assert "responses: none: the model's weights need about" in capsys.readouterr().out


def test_the_held_out_set_is_read_as_a_run_reads_it(monkeypatch, capsys):
    def found(evaluate, *_, **__):
        raise ConfigError(f"evaluate.problems={evaluate.problems!r}: not here")

    monkeypatch.setattr("polaris_jax.evaluate.benchmarks.find_held_out_problems", found)
    assert init("bench.py", "--nosample", "--evaluate=aime24+aime25") == 2
    assert capsys.readouterr().err == "error: --evaluate='aime24+aime25': not here\n"


def test_it_writes_a_config_and_holds_problems_out(here, capsys):
    assert init("first.py", "--nosample") == 0
    out = capsys.readouterr().out
    assert "model: qwen3, 0.03 M parameters" in out
    assert "data: 40 problems of 40 rows; columns question, answer" in out
    assert "wrote" in out
    config = build_config(load_config("first.py"))
    assert config.model.path == str(here / "model")
    assert config.reward.mode == "train"
    assert config.data.max_prompt_tokens + config.stages[0].max_response_tokens <= 512
    from polaris_jax.data.problems import read_problems

    train, held_out = (
        read_problems(p)[0] for p in (config.data.problems, config.evaluate.problems)
    )
    assert (len(train), len(held_out)) == (32, 8)
    assert not {p.id for p in train} & {p.id for p in held_out}
    text = (here / "first.py").read_text()
    assert "polaris prepare   --config=first.py --workdir=runs/first" in text


def test_paths_are_those_of_any_place_and_commands_can_be_copied(here, capsys):
    (here / "a b").mkdir()
    (here / "score.py").write_text("def score(response, problem):\n    return 1.0\n")
    rows(here / "q.jsonl", *({"q": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(9)))
    source = "q.jsonl,problem=q,cap=5"
    more = ("--nosample", "--hold_out=0", "--reward=score.py:score")
    assert init("a b/my.py", *more, data=source) == 0
    assert "cap=5 holds for `polaris prepare` alone" in capsys.readouterr().out
    config = build_config(load_config("a b/my.py"))
    assert config.data.problems == f"{here / 'q.jsonl'},problem=q,cap=5"
    assert config.reward.function == f"{here / 'score.py'}:score"
    assert (
        "polaris prepare   '--config=a b/my.py' --workdir=runs/my"
        in (here / "a b" / "my.py").read_text()
    )


def test_a_full_disk_leaves_nothing_that_stops_the_next_call(here, monkeypatch):
    def full(problems, place):
        write_problems(problems, place)
        if "held_out" in place.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("polaris_jax.data.problems.write_problems", full)
        assert init("full.py", "--nosample") == 1
    assert not list(here.glob("full*"))
    assert init("full.py", "--nosample") == 0


def test_what_others_write_while_it_samples_stays(here, monkeypatch, capsys):
    def sampled(_, choices, *__):
        (here / "both.py").write_text("# another's\n")
        return choices, []

    monkeypatch.setattr("polaris_jax.commands.init._sampled", sampled)
    assert init("both.py") == 2
    assert "both.py: exists, and is never overwritten" in capsys.readouterr().err
    assert [path.name for path in here.glob("both*")] == ["both.py"]


def test_a_directory_may_have_a_comma_in_its_name(here):
    (here / "run,v2").mkdir(exist_ok=True)
    assert init("run,v2/my.py", "--nosample") == 0
    problems = build_config(load_config("run,v2/my.py")).data.problems
    assert problems == str(here / "run,v2" / "my_train.parquet")


def test_it_overwrites_nothing(here, capsys):
    (here / "kept.py").write_text("# mine\n")
    (here / "other_train.parquet").write_text("mine")
    for file, named in (("kept.py", "kept.py"), ("other.py", "other_train.parquet")):
        assert init(file, "--nosample") == 2
        err = capsys.readouterr().err
        assert f"{named}: exists, and is never overwritten" in err
    assert (here / "kept.py").read_text() == "# mine\n"
    assert not (here / "other.py").exists()


def test_with_a_file_for_scores_nothing_is_held_out_and_a_pod_gets_a_layout(here):
    assert init("pod.py", "--nosample", "--evaluate=gsm8k.jsonl", "--hardware=v6e:8x8") == 0
    config = build_config(load_config("pod.py"))
    assert config.data.problems == config.evaluate.problems == str(here / "gsm8k.jsonl")
    assert not (here / "pod_train.parquet").exists()
    assert config.model.arithmetic == "bfloat16"
    assert len(config.stages) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init"], "FILE: needed; name a file, as in polaris init my.py"),
        (["init", "a.py", "b.py"], "name one file"),
        (["init", "a.py", "--data=x"], "--model: needed"),
        (["init", "a.py", "--model=model"], "--data: needed"),
        (["init", "a.txt", "--model=model", "--data=x"], "ends in .py"),
        (["init", "no/a.py", "--model=model", "--data=x"], "there is no directory "),
        (["init", "a.py", "--model=nowhere/at/all", "--data=x"], "no such checkpoint"),
        (["init", "a.py", "--model=model", "--data=x.jsonl"], "--data='x.jsonl': there is no such"),
        (["init", "a.py", "--model=model", "--data=x", "--hardware=h200"], "--hardware=h200"),
        (["init", "a.py", "--model=model", "--data=x", "--hardware=cpu:2"], "name cpu"),
        (["init", "a.py", "--model=model", "--date=x"], "did you mean --data?"),
        (
            ["init", "a.py", "--model=model", "--data=gsm8k.jsonl", "--hold_out=30"],
            "--hold_out=30: of 40 problems at most half",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_is_one_line(words, said, here, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (here / "a.py").exists()


def test_golds_that_are_programs_do_not_fit(here, capsys):
    code = [{"problem": f"Write f{i}.", "answer": f"def f{i}(x):\n    return x"} for i in range(40)]
    data = rows(here / "code.jsonl", *code)
    assert init("code.py", "--nosample", data=data) == 1
    assert "does not fit: the reward cannot read the gold answers: 100%" in capsys.readouterr().err
    assert not (here / "code.py").exists()


def test_a_template_without_the_question_does_not_fit(tmp_path, capsys):
    model = random_qwen3(tmp_path / "model")
    (model / "chat_template.jinja").write_text("Be brief.")
    words = [f"--model={model}", "--data=gsm8k.jsonl", "--nosample"]
    assert main(["init", str(tmp_path / "a.py"), *words]) == 1
    assert "does not fit: the prompt does not contain the question" in capsys.readouterr().err
