"""`polaris completion`: what bash offers is what the commands take; the scripts can be read."""

import shutil
import subprocess

import pytest

from polaris_jax.__main__ import COMMANDS, main
from polaris_jax.commands.completion import SHELLS, bash, fields, fish, flags_of, zsh

DRIVER = """
source "$1"
shift
for line in "$@"; do
  COMP_LINE=$line COMP_POINT=${#line}
  read -ra COMP_WORDS <<< "$line"
  [[ $line == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _polaris
  echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def commands():
    names = ("prepare", "train", "grade", "status", "doctor")
    return {name: (COMMANDS[name], flags_of(name)) for name in names}


@pytest.fixture(scope="module")
def offered(commands, tmp_path_factory):
    """{line: words that bash offers}."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "script").write_text(bash(commands))
    (folder / "rows.jsonl").write_text("")
    (folder / "runs").mkdir()
    lines = [line for line, _ in OFFERS]
    done = subprocess.run(
        ["bash", "-uc", DRIVER, "bash", "./script", *lines],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return dict(zip(lines, done.stdout.splitlines(), strict=True))


OFFERS = [
    ("polaris gr", "grade"),
    ("polaris ", "prepare train grade status doctor"),
    ("polaris grade --pre", "--preset="),
    ("polaris grade --preset=", "strict default lenient"),
    ("polaris grade --preset=l", "lenient"),
    ("polaris grade --input=ro", "rows.jsonl"),
    ("polaris grade --expl", "--explain"),
    ("polaris grade --config.mod", ""),
    ("polaris status r", "rows.jsonl runs"),
    ("polaris status --wa", "--watch"),
    ("polaris train --config=tin", "tiny_cpu"),
    ("polaris train --config=ro", "rows.jsonl"),
    ("polaris train --config=tiny_cpu --config.model.dtype=b", "bfloat16"),
    ("polaris train --config.stages[0].ste", "--config.stages[0].steps="),
    ("polaris train --config.stages[0].temperature_rule=f", "fixed"),
    ("polaris doctor --", ""),
    ("polaris unknown --", ""),
]


@pytest.mark.parametrize(("line", "words"), OFFERS)
def test_what_bash_offers(offered, line, words):
    assert sorted(offered[line].split()) == sorted(words.split())


def test_every_command_has_its_flags_and_every_shell_names_them(commands):
    for shell in (bash, zsh, fish):
        script = shell(commands)
        for name, (_, flags) in commands.items():
            assert name in script
            for flag in flags:
                assert f"--{flag.name}" in script or f"-l {flag.name}" in script
        assert "model.learning_rate" not in script
        assert len(fields()) > 100 and "config.optimizer.learning_rate" in script


def test_each_shell_that_is_here_reads_its_script(commands, tmp_path):
    for shell in filter(shutil.which, SHELLS):
        (tmp_path / shell).write_text(SHELLS[shell](commands))
        words = [shell, "-n", str(tmp_path / shell)]
        done = subprocess.run(words, capture_output=True, check=False)
        assert (shell, done.returncode, done.stderr) == (shell, 0, b"")


def test_the_command_prints_the_script(capsys):
    assert main(["completion", "bash"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("complete -F _polaris polaris\n")
    assert all(f"    {name}) flags=" in printed for name in COMMANDS)


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"], ["--fast", "bash"]], ids=" ".join)
def test_another_shell_is_refused(words, capsys):
    assert main(["completion", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "bash|zsh|fish" in error or "takes no --fast" in error


def test_a_command_without_flags_has_its_help(capsys):
    assert main(["doctor", "--help"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("polaris doctor")
