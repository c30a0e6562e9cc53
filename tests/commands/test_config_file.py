"""Whatever is wrong with a config file is one line that names file, line and remedy."""

from pathlib import Path

import pytest

from polaris_jax.__main__ import main
from polaris_jax.commands.config_file import load_config, shipped_configs
from polaris_jax.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HEAD = "from polaris_jax.config import default_config\n"
BODY = HEAD + "def get_config():\n    config = default_config()\n    {}\n    return config\n"


def refusal(tmp_path, text, target=""):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(f"{path}{target}")
    text = str(caught.value)
    assert text.startswith(f"--config={path}{target}: ")
    assert "Traceback" not in text and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}['boom']", "cannot load it (line 4: KeyError: 'boom'); mend the file"),
        ("1 / 0", "(line 4: ZeroDivisionError: division by zero)"),
        ("raise SystemExit(3)", "(line 4: SystemExit: 3)"),
        ("raise RuntimeError", "(line 4: RuntimeError)"),
        (
            "config.rollout.slot = 3",
            "(line 4: there is no field 'slot'; did you mean rollout.slots?)",
        ),
        ("config.rolout.slots = 3", "(line 4: there is no field 'rolout'; did you mean rollout?)"),
        ("config.stages[0].step = 3", "no field 'step'; did you mean stages[i].steps?"),
        ("config.seed = 'x'", "(line 4: TypeError: "),
        ("open('/none/here')", "(line 4: FileNotFoundError: "),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_what_a_file_may_do(line, words, tmp_path):
    assert words in refusal(tmp_path, BODY.replace("{}", line, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n\ndef get_config(:\n", "(line 3: SyntaxError: "),
        ("import no_such_module\n", "(line 1: ModuleNotFoundError: "),
        ("x = 1\n", "it has no get_config(); add one"),
        ("def get_config():\n    pass\n", "its get_config() returns NoneType; it needs to return"),
        ("def get_config(target):\n    pass\n", "needs an argument; give one as --config="),
    ],
    ids=["syntax", "import", "no-get_config", "nothing-returned", "argument"],
)
def test_a_file_that_is_none(text, words, tmp_path):
    assert words in refusal(tmp_path, text)


def test_a_target_that_the_file_does_not_take(tmp_path):
    assert "the file takes no target; leave out ':tiny'" in refusal(
        tmp_path, BODY.replace("{}", "pass"), ":tiny"
    )


def test_an_unknown_target_gets_the_known_ones_alone(request):
    path = request.config.rootpath / "configs" / "polaris_4b.py"
    with pytest.raises(ConfigError, match=r"^--config=\S+polaris_4b.py:v9: no such target; take"):
        load_config(f"{path}:v9")


def test_a_file_runs_once_and_its_dictionaries_are_locked(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(BODY.replace("{}", "print('ran')"))
    assert main(["train", f"--config={path}", f"--workdir={tmp_path}", "--config.seed=x"]) == 2
    out, err = capsys.readouterr()
    assert out == "ran\n"
    assert err.startswith("error: --config.seed=x: expected a whole number")
    with pytest.raises(AttributeError):
        load_config(str(path)).stages[0].step = 1


@pytest.mark.parametrize("name", ["tiny_cpu", "demo:plain", "polaris_4b:h100:8"])
def test_a_config_that_comes_with_the_package_goes_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _, target = name.partition(":")
    path = str(ROOT / "configs" / f"{file}.py") + (f":{target}" if target else "")
    assert load_config(name).to_dict() == load_config(path).to_dict()


def test_a_file_may_define_dataclasses_under_postponed_annotations(tmp_path):
    path = tmp_path / "mine.py"
    small = "@dataclasses.dataclass\nclass Small:\n    seed: int = 5\n"
    path.write_text(
        f"from __future__ import annotations\nimport dataclasses\n{HEAD}{small}"
        "def get_config():\n    config = default_config()\n    config.seed = Small().seed\n"
        "    return config\n"
    )
    assert load_config(str(path)).seed == 5


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_cpu").write_text("def get_config():\n    return {'seed': 7}\n")
    assert load_config("tiny_cpu").seed == 7


def test_a_name_that_is_none_lists_those_that_are():
    with pytest.raises(ConfigError, match=r"--config=tiny: there is no such file.*tiny_cpu"):
        load_config("tiny")
    assert "base" in shipped_configs()
    assert not any(name.startswith("_") for name in shipped_configs())
