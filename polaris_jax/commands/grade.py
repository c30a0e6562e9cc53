r"""Responses against gold answers, row by row, with the reason of each verdict.

Reads JSON lines and writes one line a row: reward, extracted answer, deciding layer, normal forms,
reason. Rerun it to continue where it stopped. With `--problems` the golds come from a problem file
by problem_id, as for the responses.jsonl of `polaris evaluate`. `--explain ANSWER GOLD` prints the
path that one pair takes.

Example:
  polaris grade --input responses.jsonl --gold_field gold --mode eval --workers 2 --out graded.jsonl
  polaris grade --input=runs/4b/responses.jsonl --problems=aime24.jsonl --out=graded.jsonl
  polaris grade --explain '\frac{2}{4}' '0.5'
"""

from __future__ import annotations

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.system.files import as_place, is_remote
from polaris_jax.system.interrupts import begin_work

MODES = ["train", "eval", "free"]
PRESETS = ["strict", "default", "lenient"]


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("input", "", "JSON lines of responses", flag_values=values)
    flags.DEFINE_string("out", "", "where graded rows go", flag_values=values)
    flags.DEFINE_string("text_field", "", "of the response; found by itself", flag_values=values)
    flags.DEFINE_string("gold_field", "", "of the gold; found by itself", flag_values=values)
    flags.DEFINE_string("problems", "", "problem file with the golds", flag_values=values)
    flags.DEFINE_enum("mode", "eval", MODES, "how answers are extracted", flag_values=values)
    flags.DEFINE_enum("preset", "default", PRESETS, "what counts as equal", flag_values=values)
    flags.DEFINE_integer("workers", 2, "processes", lower_bound=1, flag_values=values)
    flags.DEFINE_float("timeout_s", 5.0, "of one answer", lower_bound=0.01, flag_values=values)
    flags.DEFINE_integer(
        "memory_mib", 1024, "of one worker; 0: no limit", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool("explain", False, "ANSWER GOLD: the path of one pair", flag_values=values)


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    pair, argv = _explained_pair(argv)
    own = parse("grade", argv, doc=__doc__ or "", define=_define, takes_config=False).flags
    if pair is not None:
        from polaris_jax.reward.math.equivalence import explain_path

        print(explain_path(*pair, preset=own["preset"]))
        return 0
    for name in ("input", "out"):
        if not own[name]:
            raise ConfigError(f"--{name}: needed; name a JSON-lines file")
    source, out = as_place(own["input"]), as_place(own["out"])
    for name in ("input", "problems") if own["problems"] else ("input",):
        path = as_place(own[name])
        if path.is_dir():
            raise ConfigError(f"--{name}={own[name]}: it is a directory; name one file in it")
        if not path.is_file():
            raise ConfigError(f"--{name}={own[name]}: there is no such file")
    has_parent = is_remote(out) or out.parent.is_dir()  # a store has no directories to make
    if out.is_dir() or not has_parent:
        raise ConfigError(f"--out={own['out']}: it needs to be a file in a directory that exists")
    if out.exists() and out.resolve() == source.resolve():
        raise ConfigError(f"--out={own['out']}: it is the input; name another file")
    from polaris_jax.reward.grade_file import GradeOptions, grade_file
    from polaris_jax.system.progress import Progress

    options = GradeOptions(
        text_field=own["text_field"],
        gold_field=own["gold_field"],
        problems=own["problems"],
        mode=own["mode"],
        preset=own["preset"],
        workers=own["workers"],
        timeout_s=own["timeout_s"],
        memory_limit_bytes=own["memory_mib"] << 20,
    )
    begin_work()
    print(grade_file(source, out, options, progress=Progress()).table())
    return 0


def _explained_pair(argv: list[str]) -> tuple[tuple[str, str] | None, list[str]]:
    """The two words behind --explain, which may begin with a minus sign, and the other words."""
    if "--explain" not in argv:
        return None, argv
    place = argv.index("--explain")
    pair = argv[place + 1 : place + 3]
    if len(pair) != 2:
        raise ConfigError("--explain: needs an answer and a gold answer behind it")
    return (pair[0], pair[1]), [*argv[:place], *argv[place + 3 :]]
