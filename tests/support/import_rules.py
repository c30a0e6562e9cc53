"""The import rules of the project as data and pure functions over source text.

`breaches(sources)` takes {path inside the repository: source text} and returns one line for each
import that a rule forbids; every rule is exercised on made-up sources in test_imports.py.

The rules: __main__ -> commands -> loop -> {step, stage_change} -> {measure, plan} ->
{start, state, assemble} -> subjects -> models -> sharding -> {config, records, system}. Host
packages bring in no jax. Function-level imports count like the others.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping

PACKAGE = "polaris_jax"

# Rank of each part. A part may import parts of a lower rank and of its own.
MAIN, COMMANDS, LOOP, STEPS, TOOLS, COMPOSITION, SUBJECTS, MODELS, SHARDING, BASE = range(9, -1, -1)
RANKS = {
    "__main__": MAIN,
    "commands": COMMANDS,
    "loop": LOOP,
    "step": STEPS,
    "stage_change": STEPS,
    "measure": TOOLS,
    "plan": TOOLS,
    "start": COMPOSITION,
    "state": COMPOSITION,
    "assemble": COMPOSITION,
    "models": MODELS,
    "sharding": SHARDING,
    "config": BASE,
    "records": BASE,
    "system": BASE,
}
# Part -> the parts that may import it.
IMPORTED_ONLY_BY = {
    "commands": {"__main__"},
    "loop": {"commands"},
    "plan": {"commands"},
    "demo": {"commands", "assemble"},
}
FORBIDDEN_PAIRS = {("rollout", "train"), ("train", "rollout")} | {
    (host, "models") for host in ("batch", "reward", "data", "explore", "stages")
}
HOST_ONLY = {"reward", "explore", "stages", "batch", "records", "data"}
GRAIN_MODULE = f"{PACKAGE}.data.loader"  # may import grain, inside functions
JETSTREAM_MODULE = f"{PACKAGE}.rollout.jetstream"
BRINGS_JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "chex", "jetstream"}
JAXTYPING_WITH_JAX = {"Array", "ArrayLike", "PRNGKeyArray", "PyTree", "Key"}
NEVER = {"torch", "torchvision", "tensorflow", "tensorflow_datasets", "seqio", "ray", "vllm"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: the module asked for, where, and whether inside a function."""

    module: str
    name: str | None  # the `b` of `from a import b`
    line: int
    in_function: bool

    def target(self, modules: frozenset[str]) -> str:
        """The module that is loaded: `a.b` for `from a import b` when that is a module."""
        full = f"{self.module}.{self.name}"
        part_of_ours = self.module == PACKAGE and self.name != "__version__"
        is_module = full in modules or part_of_ours
        return full if self.name is not None and is_module else self.module


def module_name(path: str) -> str:
    """`polaris_jax/rollout/sampler.py` -> `polaris_jax.rollout.sampler`."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: str, source: str) -> list[Import]:
    """Every import of a source file, relative ones resolved, literal `import_module` included."""
    is_package = path.endswith("/__init__.py")
    parents = module_name(path).split(".")
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            found.extend(_imports_of_node(child, in_function, parents, is_package))
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, in_function or function)

    visit(ast.parse(source, path), False)
    return found


def _imports_of_node(
    node: ast.AST, in_function: bool, parents: list[str], is_package: bool
) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, None, node.lineno, in_function)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            up = node.level - 1 if is_package else node.level
            base = parents[: len(parents) - up]
            module = ".".join([*base, module] if module else base)
        for alias in node.names:
            yield Import(module, alias.name, node.lineno, in_function)
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        first = node.args[0]
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
            yield Import(str(first.value), None, node.lineno, in_function)


def part_of(module: str) -> str | None:
    """The top-level part of our package that a module belongs to; None for other packages."""
    pieces = module.split(".")
    if pieces[0] != PACKAGE:
        return None
    return pieces[1] if len(pieces) > 1 else ""


def breaches(sources: Mapping[str, str]) -> list[str]:
    """One line for each forbidden import or `jax.config` use in {path: source}."""
    modules = frozenset(module_name(path) for path in sources)
    found: list[str] = []
    for path, source in sorted(sources.items()):
        here = module_name(path)
        for item in imports_of(path, source):
            target = item.target(modules)
            rules = [*_structure_rules(here, target), *_outside_rules(here, item, target)]
            found.extend(f"{path}:{item.line}: {rule}" for rule in rules)
        found.extend(f"{path}:{line}: {rule}" for line, rule in _jax_config_rules(path, source))
    found.extend(_transitive_jax(sources, modules))
    return found


def _structure_rules(here: str, target: str) -> Iterator[str]:
    top = target.split(".")[0]
    if top == "configs" or target.startswith(f"{PACKAGE}.configs"):
        yield "nothing imports configs; they are loaded from their path"
    source_part, target_part = part_of(here), part_of(target)
    if source_part is None or target_part in (None, ""):
        return
    if source_part == "":
        yield f"the package's __init__ imports nothing, yet {target}"
        return
    if source_part == target_part:
        return
    if (source_part, target_part) in FORBIDDEN_PAIRS:
        yield f"{source_part} must not import {target_part} ({target})"
    importers = IMPORTED_ONLY_BY.get(target_part)
    if importers is not None and source_part not in importers:
        yield f"only {' and '.join(sorted(importers))} may import {target_part} ({target})"
    if target_part == "testing":
        yield f"fakes serve tests only ({target})"
    source_rank = RANKS.get(source_part, SUBJECTS)
    target_rank = RANKS.get(target_part, SUBJECTS)
    if target_rank > source_rank:
        yield f"{source_part} must not import upwards: {target}"


def _outside_rules(here: str, item: Import, target: str) -> Iterator[str]:
    top = target.split(".")[0]
    if top in NEVER:
        yield f"{top} has no place in the running system"
    if top == "jetstream" and here != JETSTREAM_MODULE:
        yield f"only {JETSTREAM_MODULE} imports jetstream"
    if part_of(here) in HOST_ONLY and _brings_jax(item):
        if here == GRAIN_MODULE and top == "grain":
            if not item.in_function:
                yield "grain imports jax: the loader imports it inside functions"
        else:
            yield f"host code must not bring in jax ({item.module}.{item.name or ''})"


def _brings_jax(item: Import) -> bool:
    top = item.module.split(".")[0]
    return top in BRINGS_JAX or (top == "jaxtyping" and item.name in JAXTYPING_WITH_JAX)


def _jax_config_rules(path: str, source: str) -> Iterator[tuple[int, str]]:
    if path.startswith(f"{PACKAGE}/commands/") or path.endswith("conftest.py"):
        return
    rule = "jax.config is set in commands/ and conftest only"
    for node in ast.walk(ast.parse(source, path)):
        attribute = isinstance(node, ast.Attribute) and node.attr == "config"
        if attribute and isinstance(node.value, ast.Name) and node.value.id == "jax":
            yield node.lineno, rule
        names_config = isinstance(node, ast.ImportFrom) and node.module == "jax"
        if names_config and any(alias.name == "config" for alias in node.names):
            yield node.lineno, rule


def _transitive_jax(sources: Mapping[str, str], modules: frozenset[str]) -> Iterator[str]:
    """Host modules that reach jax through other modules of ours, at any level of nesting."""
    edges: dict[str, set[str]] = {}
    direct: set[str] = set()
    for path, source in sources.items():
        here = module_name(path)
        edges[here] = set()
        for item in imports_of(path, source):
            target = item.target(modules)
            edges[here] |= {m for m in _with_parents(target) if m in modules}
            if _brings_jax(item) and here != GRAIN_MODULE:
                direct.add(here)
    for path in sorted(sources):
        start = module_name(path)
        if part_of(start) not in HOST_ONLY or start in direct:
            continue
        chain = _path_to(start, direct, edges)
        if chain is not None:
            yield f"{path}: host code reaches jax by {' -> '.join(chain)}"


def _with_parents(module: str) -> list[str]:
    pieces = module.split(".")
    return [".".join(pieces[: n + 1]) for n in range(len(pieces))]


def _path_to(start: str, goals: set[str], edges: Mapping[str, set[str]]) -> list[str] | None:
    queue, seen = [[start]], {start}
    while queue:
        chain = queue.pop(0)
        for target in sorted(edges.get(chain[-1], ())):
            if target in goals:
                return [*chain, target]
            if target not in seen:
                seen.add(target)
                queue.append([*chain, target])
    return None
