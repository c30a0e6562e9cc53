r"""What `polaris prepare` catches, what it drops, and how much a million rows take.

    python benchmarks/prepare.py caught  [--data DIR]
    python benchmarks/prepare.py dropped [--data DIR] [--out FILE]
    python benchmarks/prepare.py rows    [--rows 1000000] [--folder DIR] [--tokenizer DIR]

`caught` plants each problem of the five benchmarks verbatim, with other white space, with other
macros, and with its last sentence cut, and counts how many of them leave. `dropped` prepares the
two problem sets of DIR against the benchmarks and lists every row of MATH that leaves, with its
pair, for judgement by hand. `rows` writes synthetic rows, runs the command on them, and prints rows
a second and the largest resident set of any of its processes. DIR is $POLARIS_SHARED/data, else
../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from polaris_jax.config.data import PROMPT_SUFFIX  # noqa: E402
from polaris_jax.data.prepare.options import RULES  # noqa: E402
from polaris_jax.data.prepare.pipeline import Preparation  # noqa: E402
from polaris_jax.data.prepare.reading import open_sources  # noqa: E402
from polaris_jax.data.prepare.summary import table  # noqa: E402
from polaris_jax.data.prepare.terms import Rules  # noqa: E402
from polaris_jax.data.prepare.tokens import math_tokens  # noqa: E402
from polaris_jax.evaluate.benchmarks import BENCHMARKS, read_benchmark  # noqa: E402
from polaris_jax.records import Problem  # noqa: E402
from polaris_jax.system.progress import Progress  # noqa: E402

TRAINING = ("aime_1983_2023", "math_train")
SHOWN_CHARS = 700
# Macros, and what others write in their place.
OTHER_MACROS = (
    (r"\\frac\b", r"\\dfrac"), (r"\\leq?\b", r"\\leqslant"), (r"\\geq?\b", r"\\geqslant"),
    (r"\\ldots|\\cdots|\\dots", r"\\dotsc"), (r"\\cdot\b", r"\\times"),
    (r"\\left\b|\\right\b", ""), (r"\\text\s?\{", r"\\mathrm{"), (r"\\\{", r"\\lbrace "),
    (r"\\\}", r"\\rbrace "), (r"\\neq?\b", r"\\neq"), (r"\^\{?\\circ\}?", r"^{\\circ}"),
    (r"\\triangle\b", r"\\triangle{}"), (r"\\overline\b", r"\\bar"), (r"\\,|\\;|\\!|~", " "),
)  # fmt: skip


def respaced(text: str, rng: random.Random) -> str:
    """The text with other white space: between words, around signs, and in line breaks."""
    text = re.sub(r"\s+", lambda _: rng.choice((" ", "  ", "\n", " \n ", "\t")), text)
    return re.sub(r"\s*([=+<>])\s*", lambda m: rng.choice(("{}", " {} ")).format(m[1]), text)


def other_macros(text: str, rng: random.Random) -> str:
    """The text with other macros and other marks around formulas."""
    for macro, other in OTHER_MACROS:
        text = re.sub(macro, other, text)
    text = re.sub(r"\$\$(.+?)\$\$", r"\\[\1\\]", text, flags=re.DOTALL)
    return re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text)


def without_last_sentence(text: str, rng: random.Random) -> str:
    """The text up to its last sentence; "" if it has but one."""
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z$\\(])", text.strip())
    return " ".join(sentences[:-1])


PLANTED: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": lambda text, _: text,
    "other white space": respaced,
    "other macros": other_macros,
    "last sentence cut": without_last_sentence,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["caught", "dropped", "rows"])
    shared = os.environ.get("POLARIS_SHARED", str(ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=Path(shared) / "data")
    parser.add_argument("--out", type=Path, help="where `dropped` writes its list")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where `rows` works; else a temporary one")
    parser.add_argument(
        "--tokenizer", type=Path, help="model.path of `rows`; a tokenizer is enough"
    )
    args = parser.parse_args()
    if args.what == "caught":
        measure_caught(args.data)
    elif args.what == "dropped":
        list_dropped(args.data, args.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = args.tokenizer or args.data / "r1_distill_qwen_tokenizer"
            measure_rows(args.folder or Path(folder), args.rows, tokenizer)


def benchmarks_of(data: Path) -> list[tuple[str, list[Problem]]]:
    """The five benchmarks."""
    return [(name, read_benchmark(data / "benchmarks" / f"{name}.jsonl")) for name in BENCHMARKS]


def prepared(
    sources: Sequence[Path], benchmarks: list[tuple[str, list[Problem]]], rules: frozenset[str]
) -> Preparation:
    """The rows of the sources with their fates; no prompt is too long."""
    folder = Path(tempfile.mkdtemp())
    found = Preparation(
        open_sources(list(map(str, sources)), rules=rules),
        Rules(True, 0.8, benchmarks, lambda problems: [1] * len(problems), 1),
        folder=folder,
        progress=Progress(enabled=False),
    )
    found.read()
    found.leave_out_repeats()
    found.leave_out_known()
    found.finish()
    return found


def measure_caught(data: Path) -> None:
    """Prints the share of planted problems that leave, by how they were changed."""
    benchmarks = benchmarks_of(data)
    rng = random.Random(0)
    print(f"{'planted':<22}{'rows':>6}{'caught':>8}{'share':>9}   missed")
    for name, change in PLANTED.items():
        rows = []
        for benchmark, problems in benchmarks:
            for problem in problems:
                text = change(problem.problem.replace(PROMPT_SUFFIX, ""), rng)
                if text.strip():
                    row = {"id": f"{benchmark}/{problem.id}", "problem": text, "answer": "1"}
                    rows.append(row)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "planted.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            training = [data / "problems" / f"{stem}.jsonl" for stem in TRAINING]
            found = prepared([path, *training], benchmarks, frozenset())
            records = [r for r in found.rejected() if r["source"] == "planted"]
        gone = {r["id"]: r for r in records}
        caught = {id for id, r in gone.items() if r["reason"] == "in_benchmark"}
        # A repeat of one that left, such as a problem that its benchmark has twice.
        caught |= {id for id, r in gone.items() if r.get("of", {}).get("id") in caught}
        missed = [row for row in rows if row["id"] not in caught]
        short = sum(len(math_tokens(row["problem"])) < 8 for row in missed)
        share = len(caught) / len(rows)
        print(
            f"{name:<22}{len(rows):>6}{len(caught):>8}{share:>9.2%}   "
            f"{len(missed)}, of which {short} have fewer than 8 tokens"
        )
        for row in missed[:5]:
            print(f"    {row['id']}: {row['problem'][:150]!r}")


def list_dropped(data: Path, out: Path | None) -> None:
    """Lists every row of MATH that leaves, beside the row or the problem that is the reason."""
    training = [data / "problems" / f"{stem}.jsonl" for stem in TRAINING]
    found = prepared(training, benchmarks_of(data), frozenset(RULES))
    print("\n".join(table(found)))
    lines = []
    for record in found.rejected():
        if record["source"] == "math_train":
            of = record.get("of", {})
            lines += [
                f"## {record.get('id', record['place'])}: {record['reason']} "
                f"{record.get('detail', '')}{of.get('id', '')} {of.get('share', '')}".rstrip(),
                f"    {record.get('answer')!r}: {record.get('problem', '')[:SHOWN_CHARS]!r}",
                f"    {of.get('answer')!r}: {of.get('problem', '')[:SHOWN_CHARS]!r}",
            ]
    text = "\n".join(lines) + "\n"
    if out is None:
        print(text)
    else:
        out.write_text(text)


NAMES = "Ada Ben Cleo Dan Eva Finn Gita Hugo Iris Jon Kim Leo Mia Noor Olga Pia Quin Rosa"
THINGS = "apples marbles stamps books tickets coins cards bricks shells pens plums maps"
PLACES = "market school harbour library station garden museum bakery workshop theatre"
VERBS = "buys finds sells loses counts packs paints carries trades orders"


def synthetic_rows(count: int) -> Iterator[str]:
    """Lines of a set: problems of 150 to 400 characters, repeats, near repeats, malformed rows."""
    rng = random.Random(0)
    names, verbs, things, places = (text.split() for text in (NAMES, VERBS, THINGS, PLACES))
    recent: list[str] = []
    for number in range(count):
        kind = rng.random()
        if kind < 0.005:
            yield '{"problem": "no answer"}\n' if kind < 0.004 else "{torn\n"
            continue
        if kind < 0.025 and recent:
            text = rng.choice(recent)
        elif kind < 0.045 and recent:
            text = rng.choice(recent).replace("Then", "After that")
        else:
            steps = []
            for _ in range(rng.randrange(3, 8)):
                a, b = rng.randrange(2, 999), rng.randrange(2, 99)
                steps.append(
                    f"{rng.choice(names)} {rng.choice(verbs)} {a} {rng.choice(things)} at the "
                    f"{rng.choice(places)} for ${b}$ coins each."
                )
            text = f"{steps[0]} Then {' '.join(steps[1:])} How many coins were paid in all?"
            recent = [*recent[-999:], text]
        answer = sum(map(int, re.findall(r"\d+", text)))
        row = {"id": f"s{number}", "problem": text, "answer": str(answer), "level": number % 5}
        yield json.dumps(row) + "\n"


def measure_rows(folder: Path, count: int, tokenizer: Path) -> None:
    """Prints rows a second and the peak of the resident set for `count` synthetic rows."""
    folder.mkdir(parents=True, exist_ok=True)
    source, against = folder / "rows.jsonl", folder / "against.jsonl"
    with source.open("w") as file:
        file.writelines(synthetic_rows(count))
    lines = [line for line in source.open() if '"id"' in line][:1000]
    against.write_text("".join(lines[::10]))
    command = [sys.executable, "-m", "polaris_jax", "prepare", "--config=configs/polaris_4b.py"]
    command += [f"--workdir={folder / 'run'}", f"--source={source}", f"--against={against}"]
    command += [f"--config.model.path={tokenizer}"]
    began_s = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    wall_s = time.monotonic() - began_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    print(
        f"{count:,} rows, {source.stat().st_size / 2**20:.0f} MiB: {count / wall_s:,.0f} rows/s, "
        f"{wall_s:.0f} s, {cpu_s:.0f} s of CPU ({count / cpu_s:,.0f} rows a CPU second); largest "
        f"resident set {used.ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
