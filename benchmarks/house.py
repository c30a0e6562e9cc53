"""The structure of the package: its size, and how much of it a reader of one step must know.

    python benchmarks/house.py [--root DIR] [--json FILE] [--verbose]

Prints a Markdown table of measured values and aims. Sources are read, not imported; what runs is
seen in one tiny `polaris train` of two stages on the CPU, under a profile hook (two minutes).
--root measures another checkout, of another layout too; --verbose prints the lists behind the
numbers. The aims come from commit 8e2411f: 14 calls in 10 files, 47 files a step, 1,947 lines.

- A line of code holds a token that is no comment and belongs to no docstring and no import.
- Frames from `main` to the loss: of the package's functions, on the stack when the loss is first
  traced; lambdas and comprehensions do not count. Functions are fewer: nested ones are one with the
  function that they are written in.
- A step executes a file if one of its functions is called, or calls another of the package, from
  the draw of a step's prompts to the next step's draw, in any thread. Nothing compiles then.
  Not seen: the grading workers, processes of their own, and a dataclass's generated methods.
- A stage change goes from the end of a stage's last update to the next stage's first draw, so the
  end of the last step is part of it.
- The biggest class of the loop has the most attributes (assigned as `self.X`, or fields in its
  body) and methods together.
- The tests of the loop are the files under tests/ that import one of the loop's files.
- Forms of a sampled response on the host cannot be measured: `FORMS` lists them by hand, and those
  that exist are counted.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = "polaris_jax"

# Loop, step, stage change, state and what they are built from, in the old layout and in the new.
LOOP = [
    *("loop", "training_run", "stage_entry", "step_rollout", "step_update", "step_rules", "mark"),
    *("session", "in_flight", "sample_groups"),
    *("step", "stage_change", "state", "assemble"),
]
# Smaller files that the loop alone needs, more or less; counted apart.
HELPERS = ["base_model", "grade_ahead", "held_out", "run_files", "start_at", "step_clock"]
HELPERS += ["step_records"]

# What a sampled response is held in from the sampler to packing: files, class or function. `_told`
# makes tuples for the other processes, `_texts` a dict of texts, GradeAhead keeps lists.
FORMS = [
    *(("rollout/*.py", "Sequence"), ("rollout/*.py", "Sample"), ("in_flight.py", "Group")),
    *(("sample_groups.py", "_told"), ("sample_groups.py", "_texts")),
    ("grade_ahead.py", "GradeAhead"),
    *(("records.py", name) for name in ("Response", "Group", "Rollouts", "Graded")),
]

# The tiny run draws once a step. Of stage 0 the step `MIDDLE` is watched; stage 1 has one step.
STEPS, MIDDLE = 4, 2
LOSS = "token_loss"
DRAW = ("data/loader.py", "take")
UPDATE = ("train/", "update")
FLAGS = f"""model.max_position_tokens=64 data.max_prompt_tokens=24
warmstart.steps=80 warmstart.examples=512 warmstart.learning_rate=1e-2 warmstart.hidden_size=32
warmstart.intermediate_size=64 warmstart.num_layers=2 warmstart.num_heads=2
warmstart.num_kv_heads=1 warmstart.head_dim=16
rollout.prompts_per_step=8 rollout.responses_per_prompt=8 rollout.slots=64
stages[0].steps={STEPS} stages[0].temperature_rule=fixed stages[0].max_response_tokens=32
stages[1].steps=1 stages[1].max_response_tokens=40 stages[1].rope_factor=1.5
rope.yarn.original_max_position_embeddings=64 probe.problems=4 probe.n=4 probe.max_candidates=2
batch.row_len=128 batch.rows=2 reward.workers=1 checkpoint.every_steps=1000
evaluate.max_response_tokens=16""".split()


def main() -> None:
    parser = argparse.ArgumentParser(description="the structure of the package, measured")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--json", type=Path, help="also write the numbers and lists to a file")
    parser.add_argument("--verbose", action="store_true", help="print the lists too")
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)  # see `tiny_run`
    args = parser.parse_args()
    root = args.root.resolve()
    if not (root / PACKAGE / "__main__.py").exists():
        parser.error(f"--root={root}: there is no {PACKAGE}/__main__.py")
    if args.watch:
        sys.exit(watch(root, args.watch))
    rows, lists = measure(root)
    print(f"# The structure of the package at {_commit(root)}\n")
    print("| measure | measured | aim |\n|---|---|---|")
    for name, value, aim in rows:
        print(f"| {name} | {value:,} | {aim} |")
    if args.verbose:
        for title, lines in lists.items():
            print(f"\n## {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    if args.json:
        numbers = {name.partition(",")[0]: value for name, value, _ in rows}
        args.json.write_text(json.dumps({"numbers": numbers, "lists": lists}, indent=1) + "\n")


def measure(root: Path) -> tuple[list[tuple[str, int, str]], dict[str, list[str]]]:
    """(name, value, aim) of each row of the table, and the lists behind them by title."""
    package = root / PACKAGE
    files = sorted(package.rglob("*.py"))
    top = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    code = sum(code_lines(path.read_text()) for path in files)
    loop, helpers = _lines(package, LOOP), _lines(package, HELPERS)
    biggest, attributes, methods = max(
        (sizes for name in loop for sizes in class_sizes(package / name)),
        key=lambda sizes: sizes[1] + sizes[2],
    )
    fakes = {path: fakes_in(path) for path in sorted((root / "tests").rglob("*.py"))}
    of_loop = {path for path in fakes if _imports_loop(path)}
    forms = [f"{where}: {name}" for where, name in FORMS if _defines(package, where, name)]
    seen = tiny_run(root)
    frames = seen["stack"]
    functions = dict.fromkeys(frame.split(".<locals>")[0] for frame in frames)
    crossed = {frame.split(":")[0] for frame in frames}
    step = [x for x in seen["step"] if not x.startswith(("models/", "rollout/"))]
    change = [x for x in seen["change"] if not x.startswith(("models/", "rollout/", "train/"))]
    rows = [
        (f"Python files directly in {PACKAGE}/, without `__init__.py`", len(top), "at most 10"),
        ("files in the package", len(files), "about 170"),
        ("lines of code in the package", code, "under 20,000"),
        ("functions from `main` to the loss", len(functions), "at most 9"),
        ("frames from `main` to the loss", len(frames), "fewer"),
        ("files from `main` to the loss", len(crossed), "at most 7"),
        ("files that a step executes, no models/, rollout/", len(step), "at most 23"),
        ("files that a stage change executes, no models/, rollout/, train/", len(change), "fewer"),
        ("files of the loop", len(loop), "5"),
        ("lines of the loop", sum(loop.values()), "about 1,150"),
        ("lines of its helpers", sum(helpers.values()), "fewer"),
        (f"attributes of the biggest class of the loop, {biggest}", attributes, "fewer"),
        (f"methods of the biggest class of the loop, {biggest}", methods, "fewer"),
        ("fakes in the tests of the loop", sum(fakes[path] for path in of_loop), "fewer than 10"),
        ("fakes in all tests", sum(fakes.values()), "fewer"),
        ("host forms of a sampled response, counted by hand", len(forms), "4"),
    ]
    lists = {
        "Frames from main to the loss": frames,
        "Files that a step executes": step,
        "Files that a stage change executes": change,
        "Lines of the loop": [f"{name} {lines}" for name, lines in loop.items()],
        "Lines of its helpers": [f"{name} {lines}" for name, lines in helpers.items()],
        "Fakes": [
            f"{path.relative_to(root)} {count}{'' if path in of_loop else ', not of the loop'}"
            for path, count in fakes.items()
            if count
        ],
        "Host forms of a sampled response": forms,
    }
    return rows, lists


# ---- reading the sources


def code_lines(text: str) -> int:
    """Lines with a token that is no comment and belongs to no docstring and no import."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    layout |= {tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is None:
                continue
            node = node.body[0]
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def class_sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, attributes, methods) of each class of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            fields = {ast.unparse(x.target) for x in node.body if isinstance(x, ast.AnnAssign)}
            assigned = {
                x.attr
                for x in ast.walk(node)
                if isinstance(x, ast.Attribute) and isinstance(x.ctx, ast.Store)
                if isinstance(x.value, ast.Name) and x.value.id == "self"
            }
            methods = [x for x in node.body if isinstance(x, ast.FunctionDef)]
            yield node.name, len(fields | assigned), len(methods)


def fakes_in(path: Path) -> int:
    """Calls of SimpleNamespace, under other names too."""
    names, calls = {"SimpleNamespace"}, 0

    def is_fake(node: ast.AST | None) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == "SimpleNamespace"
        return isinstance(node, ast.Name) and node.id in names

    for node in ast.walk(ast.parse(path.read_text())):  # outer statements first: names, then calls
        if isinstance(node, ast.alias) and node.name == "SimpleNamespace":
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and is_fake(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
        calls += isinstance(node, ast.Call) and is_fake(node.func)
    return calls


def _imports_loop(path: Path) -> bool:
    names = rf"({'|'.join(LOOP)})\b"
    line = rf"\b{PACKAGE}\.{names}|^from {PACKAGE} import .*\b{names}"
    return re.search(line, path.read_text(), re.MULTILINE) is not None


def _defines(package: Path, where: str, name: str) -> bool:
    line = re.compile(rf"^(class|def) {name}\b", re.MULTILINE)
    return any(line.search(path.read_text()) for path in package.glob(where))


def _lines(package: Path, names: list[str]) -> dict[str, int]:
    """Lines of those files that exist."""
    paths = [path for name in names if (path := package / f"{name}.py").exists()]
    return {path.name: path.read_text().count("\n") for path in paths}


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown commit"


# ---- the tiny run


def tiny_run(root: Path) -> dict[str, list[str]]:
    """What `watch` saw, in a process of its own: {"stack", "step", "change"}."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, f"--root={root}", f"--watch={folder}"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"the tiny run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return json.loads((Path(folder) / "seen.json").read_text())


def watch(root: Path, folder: Path) -> int:
    """Runs `polaris train` under the hook, leaves `seen.json` in `folder`; the exit status."""
    # Every even number is right, so that groups are mixed and there is something to learn.
    answers = list(range(0, 100, 2))
    problems = [{"problem": f"Start with {i}.", "answer": answers} for i in range(1, 13)]
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    line = ["train", "--config=configs/tiny_cpu.py", f"--workdir={folder / 'run'}"]
    line += [f"--config.{flag}" for flag in [*FLAGS, f"data.problems={path}"]]
    hook = Hook(root / PACKAGE)
    threading.setprofile(hook)
    sys.setprofile(hook)
    from polaris_jax.__main__ import main as polaris

    status = polaris(line)
    sys.setprofile(None)
    if status == 0:
        hook.check()
        seen = {"stack": hook.stack, "step": sorted(hook.step), "change": sorted(hook.change)}
        (folder / "seen.json").write_text(json.dumps(seen))
    return status


class Hook:
    """A profile function that keeps the stack of the first loss and the files of the windows."""

    def __init__(self, package: Path) -> None:
        self.stack: list[str] = []
        self.step: set[str] = set()
        self.change: set[str] = set()
        self._prefix = f"{package}{os.sep}"
        self._names: dict[CodeType, str | None] = {}
        self._draws, self._updated = 0, False

    def check(self) -> None:
        """Exits unless the run went as the windows suppose."""
        if self._draws != STEPS + 1:
            sys.exit(f"{self._draws} prompt draws in {STEPS + 1} steps: see DRAW in {__file__}")
        if not (self._updated and self.stack):
            sys.exit(f"no update in the step, or no loss: see UPDATE and LOSS in {__file__}")

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        file, name = self._file(frame), frame.f_code.co_name
        if file is None or event not in ("call", "return"):
            return
        is_update = file.startswith(UPDATE[0]) and name == UPDATE[1]
        if event == "return":
            if is_update and self._draws == STEPS:
                self.change.clear()  # what was called so far came before the end of the update
            return
        self._draws += (file, name) == DRAW
        if name == LOSS and self._draws and not self.stack:
            self.stack = self._stack(frame)
        files = {file, self._file(frame.f_back) or file}
        if self._draws == MIDDLE + 1:
            self.step |= files
            self._updated |= is_update
        elif self._draws == STEPS:
            self.change |= files

    def _file(self, frame: FrameType | None) -> str | None:
        """The file of a function of the package; None for other code."""
        if frame is None:
            return None
        code = frame.f_code
        if code not in self._names:
            inside = code.co_filename.startswith(self._prefix)
            is_function = code.co_flags & inspect.CO_OPTIMIZED  # no body of a module or class
            name = Path(code.co_filename[len(self._prefix) :]).as_posix()
            self._names[code] = name if inside and is_function else None
        return self._names[code]

    def _stack(self, frame: FrameType | None) -> list[str]:
        frames = []
        while frame is not None:
            file, code = self._file(frame), frame.f_code
            if file and not code.co_name.startswith("<"):
                frames.append(f"{file}: {code.co_qualname}")
            frame = frame.f_back
        return frames[::-1]


if __name__ == "__main__":
    main()
