"""What drafts from history save: our sampler with `draft=history` beside itself without.

    python benchmarks/draft.py [--parts tail,epoch,overhead] [--rounds 3] [--out FILE]
    python benchmarks/draft.py --parts=run --run=WORKDIR --config=FILE [--steps_ago=20]

tail: 4 live rows of SmolLM2-135M, 256 tokens each. The history is of two kinds, both SIMULATED:
four responses to each prompt by the same weights with noise of --noise of each entry, which stand
for a policy some updates older; and the response itself with a share of its tokens exchanged, which
shows how speed follows from what is accepted. epoch: workload S2 of `benchmarks/sampler.py` (8
prompts x 4, long-tailed lengths), whose prompts return with other seeds, with the responses of the
noisy weights as history. overhead: S1 and S2 without any history.

run: nothing is simulated. The prompts of a finished run's step, --steps_ago updates before its last
checkpoint, are sampled anew by the weights of that checkpoint, with the responses of then as
history, as in an epoch of that many steps: 4 rows (the tail of a rollout), and 4 rows for each of
the step's prompts. Responses end as in the run, so a share of the accepted tokens can be planned
with. Their ids are those of the stored texts.

Of a tail the time behind each row's first token counts: its prompts were read long before. The
others include their prompts. Temperature 1, stop ids ignored but in part run, float32, 2 threads.
The two samplers take turns, --rounds rounds with seeds of their own; medians. Compilation is apart:
a first call of each is not counted. Tokens of both are compared, and responses that differ are
counted: one in 10,000 tokens may, by rounding.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIMULATED = ("tail", "epoch", "overhead")
PARTS = (*SIMULATED, "run")
ROWS, TAIL_TOKENS, TAIL_PROMPT, HISTORY = 4, 256, 64, 4
EXCHANGED = (0.0, 0.05, 0.1, 0.2, 0.4)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One round: a prompt, a number of tokens and a seed for each response, and what came before.

    Attributes:
        prompts: token ids.
        tokens: response tokens.
        seeds: one a prompt.
        history: earlier responses to each prompt.
        stop: token ids that end a response; (): it has all its tokens.
    """

    prompts: list[list[int]]
    tokens: list[int]
    seeds: list[int]
    history: list[list[list[int]]]
    stop: tuple[int, ...] = ()


def main() -> None:
    args = _arguments()
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(ROOT))
    from peers.report import Report
    from peers.sampling.side import pin

    pin(args.threads)
    report = Report(args.out)
    report.add(
        [
            f"Drafts from history, {date.today()}, {args.threads} threads, {platform.machine()}"
            f"{', TINY: figures mean nothing' if args.tiny else ''}",
            "",
            "| part | history | off, tokens/s | on, tokens/s | on / off | accepted | steps saved | "
            "responses that differ |",
            "|---|---|---|---|---|---|---|---|",
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts.split(","):
            for line in _PARTS[part](args, Path(folder)):
                report.add([line])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what drafts from history save")
    parser.add_argument("--parts", default=",".join(SIMULATED), help="separated by commas")
    parser.add_argument("--run", default="", help="workdir of a finished run, for part run")
    parser.add_argument("--config", default="", help="config of that run")
    parser.add_argument("--steps_ago", type=int, default=20, help="of the history, for part run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.01, help="of each weight, relative")
    parser.add_argument("--draft_tokens", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="a smoke test; figures mean nothing")
    parser.add_argument("--out", default="", help="also write a Markdown file")
    args = parser.parse_args()
    for name in args.parts.split(","):
        if name not in PARTS:
            parser.error(f"--parts: {name!r}; expected some of {', '.join(PARTS)}")
    if "run" in args.parts.split(",") and not (args.run and args.config):
        parser.error(f"--run={args.run!r} --config={args.config!r}: part run needs both")
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds}: at least 1")
    return args


def _model(args: argparse.Namespace, name: str, folder: Path) -> Any:
    """A model of `ours.MODELS`, or a small random one."""
    import jax
    from peers.sampling import ours

    from polaris_jax.models import Decoder, load_pretrained

    if not args.tiny:
        return load_pretrained(str(ours.write_weights(name, folder)), dtype="float32")[0]
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2}
    model = Decoder.init(dataclasses.replace(ours.MICRO, **sizes), jax.random.key(0))
    return jax.tree.map(lambda x: 3 * x, model)  # sharper logits, as of a trained model


def _noisy(model: Any, share: float) -> Any:
    """The model with normal noise of a share of each entry."""
    import jax

    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            x * (1 + share * jax.random.normal(k, x.shape, x.dtype))
            for x, k in zip(leaves, keys, strict=True)
        ],
    )


def _sampler(args: argparse.Namespace, model: Any, *, rows: int, max_len: int, draft: str) -> Any:
    from polaris_jax.rollout import Sampler, SamplerConfig
    from polaris_jax.rollout.draft_costs import NO_COSTS

    config = SamplerConfig(
        slots=rows, num_pages=0, max_len=max_len, draft=draft, draft_tokens=args.draft_tokens
    )
    sampler = Sampler(model, config)
    if args.tiny:  # so small a model would never draft
        sampler._engine.draft_costs = NO_COSTS
    return sampler


def _generate(sampler: Any, asked: Asked) -> tuple[float, list[list[int]]]:
    """(seconds, the responses' tokens)."""
    from polaris_jax.rollout import SamplingParams

    params = SamplingParams(
        temperature=1.0, max_tokens=asked.tokens, seed=asked.seeds, stop_token_ids=asked.stop
    )
    sampler.drop_prefixes()
    began_s = time.perf_counter()
    groups = sampler.generate(asked.prompts, params, history=asked.history)
    took_s = time.perf_counter() - began_s
    return took_s, [list(group[0].token_ids) for group in groups]


def _after_first(sampler: Any, asked: Asked) -> tuple[float, list[list[int]]]:
    """`_generate`, less the time of the prompts and first tokens: rows that began long ago."""
    took_s, tokens = _generate(sampler, asked)
    first = dataclasses.replace(asked, tokens=[1] * len(asked.prompts))
    first_s, _ = _generate(sampler, first)
    return took_s - first_s, tokens


def _line(part: str, history: str, off: Any, on: Any, rounds: Sequence[Asked]) -> str:
    """A row of the table: the rounds by both samplers in turn, the first one not counted.

    A tail's time begins behind the first tokens, which are not counted then.
    """
    generate, untimed = (_after_first, 1) if part.endswith("tail") else (_generate, 0)
    ratios, rates, differing = [], {"off": [], "on": []}, 0
    for number, asked in enumerate(rounds):
        seconds, tokens = {}, {}
        if number == 1:
            on.reset_stats()
        for name in ("off", "on") if number % 2 else ("on", "off"):
            seconds[name], tokens[name] = generate(on if name == "on" else off, asked)
        if number:
            ratios.append(seconds["off"] / seconds["on"])
            for name, took_s in seconds.items():
                rates[name].append(sum(len(row) - untimed for row in tokens[name]) / took_s)
            differing += sum(a != b for a, b in zip(tokens["off"], tokens["on"], strict=True))
    stats = on.stats()
    cells = [
        part,
        history,
        *(f"{statistics.median(rates[name]):,.1f}" for name in ("off", "on")),
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        f"{stats['draft_accepted']:,} of {stats['draft_tokens']:,} ({stats['draft_rate']:.0%})",
        f"{stats['draft_steps_saved'] / len(ratios):.0f} a round",
        f"{differing} of {sum(len(asked.prompts) for asked in rounds[1:])}",
    ]
    return "| " + " | ".join(cells) + " |"


def _tail(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    length = 24 if args.tiny else TAIL_TOKENS
    model = _model(args, "smollm2", folder)
    pick, vocab = random.Random(0), model.config.vocab_size
    prompts = [[pick.randrange(1, vocab) for _ in range(TAIL_PROMPT)] for _ in range(ROWS)]
    sizes = {"rows": ROWS * HISTORY, "max_len": TAIL_PROMPT + length}
    older = _sampler(args, _noisy(model, args.noise), **sizes, draft="off")
    sizes["rows"] = ROWS
    off, on = (_sampler(args, model, **sizes, draft=draft) for draft in ("off", "history"))

    def asked(number: int, history: list[list[list[int]]]) -> Asked:
        seeds = [100 * number + row for row in range(ROWS)]
        return Asked(prompts, [length] * ROWS, seeds, history)

    former = _history(older, prompts, length)
    rounds = [asked(number, former) for number in range(args.rounds + 1)]
    yield _line("tail", f"weights with noise {args.noise:g}", off, on, rounds)
    none: list[list[list[int]]] = [[]] * ROWS
    own = [_generate(off, asked(number, none))[1] for number in range(args.rounds + 1)]
    for share in EXCHANGED:
        rounds = [
            asked(number, [[_exchanged(text, share, vocab)] for text in texts])
            for number, texts in enumerate(own)
        ]
        yield _line("tail", f"the response, {share:.0%} exchanged", off, on, rounds)


def _history(sampler: Any, prompts: list[list[int]], length: int) -> list[list[list[int]]]:
    """`HISTORY` responses to each prompt."""
    every = [prompt for prompt in prompts for _ in range(HISTORY)]
    seeds = list(range(10_000, 10_000 + len(every)))
    _, texts = _generate(sampler, Asked(every, [length] * len(every), seeds, [[]] * len(every)))
    return [texts[i : i + HISTORY] for i in range(0, len(texts), HISTORY)]


def _exchanged(text: list[int], share: float, vocab: int) -> list[int]:
    pick = random.Random(len(text))
    return [pick.randrange(1, vocab) if pick.random() < share else token for token in text]


def _epoch(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    workload, model, vocab = _workload(args, "S2", folder)
    from peers.sampling.workloads import requests

    first = requests(workload, 0, vocab)
    prompts = [request.prompt for request in first]
    sizes = {"rows": workload.num_requests, "max_len": workload.max_len}
    older = _sampler(args, _noisy(model, args.noise), **sizes, draft="off")
    lengths = [request.tokens for request in first]
    none: list[list[list[int]]] = [[]] * len(prompts)
    _, texts = _generate(older, Asked(prompts, lengths, [r.seed for r in first], none))
    former = [[t for p, t in zip(prompts, texts, strict=True) if p == own] for own in prompts]
    rounds = [
        Asked(
            prompts,
            [r.tokens for r in requests(workload, number, vocab)],
            [1000 * number + i for i in range(len(prompts))],
            former,
        )
        for number in range(args.rounds + 1)
    ]
    off, on = (_sampler(args, model, **sizes, draft=draft) for draft in ("off", "history"))
    yield _line("epoch, S2", f"weights with noise {args.noise:g}", off, on, rounds)


def _overhead(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    from peers.sampling.workloads import requests

    for name in ("S1", "S2"):
        workload, model, vocab = _workload(args, name, folder)
        sizes = {"rows": workload.num_requests, "max_len": workload.max_len}
        off, on = (_sampler(args, model, **sizes, draft=draft) for draft in ("off", "history"))
        rounds = []
        for number in range(args.rounds + 1):
            asked = requests(workload, number, vocab)
            rounds.append(
                Asked(
                    [r.prompt for r in asked],
                    [r.tokens for r in asked],
                    [r.seed for r in asked],
                    [[]] * len(asked),
                )
            )
        yield _line(f"overhead, {name}", "none", off, on, rounds)


def _run(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    from etils import epath

    from polaris_jax.checkpoint.convert import load_any
    from polaris_jax.commands.flags import parse
    from polaris_jax.data.prompts import prompt_format
    from polaris_jax.measure.weights import find_checkpoint
    from polaris_jax.records import Problem
    from polaris_jax.run.workdir import rollouts_path

    workdir = epath.Path(args.run)
    config = parse("train", [f"--config={args.config}", f"--workdir={folder}"], doc="").config
    place, last = find_checkpoint(workdir, "latest")
    step = (last or 0) - args.steps_ago
    if step < 0:
        sys.exit(f"--steps_ago={args.steps_ago}: the last checkpoint of {workdir} is of {last}")
    model, tokenizer = load_any(place)
    problems: dict[str, Problem] = {}
    earlier: dict[str, list[list[int]]] = {}
    for line in rollouts_path(workdir, step).read_text().splitlines():
        row = json.loads(line)
        name = row["problem_id"]
        problems[name] = Problem(name, row["question"], row["gold"])
        end = [tokenizer.eos_token_id] if row["finish_reason"] == "stop" else []
        text = tokenizer.encode(row["text"], add_special_tokens=False)
        earlier.setdefault(name, []).append([*text, *end])
    rendered = prompt_format(config.data).render(tokenizer, list(problems.values()))
    prompts = {name: list(ids) for name, (_, ids) in zip(problems, rendered, strict=True)}
    most = config.stages[-1].max_response_tokens
    stop = tuple({*model.config.end_ids, tokenizer.eos_token_id})
    every = list(problems)
    for part, rows in (("tail", every[:ROWS]), ("epoch", [n for n in every for _ in range(ROWS)])):
        length = max(len(ids) for ids in prompts.values()) + most
        off, on = (
            _sampler(args, model, rows=len(rows), max_len=length, draft=draft)
            for draft in ("off", "history")
        )
        rounds = [
            Asked(
                [prompts[name] for name in rows],
                [most] * len(rows),
                [1000 * number + i for i in range(len(rows))],
                [earlier[name] for name in rows],
                stop,
            )
            for number in range(args.rounds + 1)
        ]
        yield _line(f"run, {part}", f"step {step} of {last}", off, on, rounds)


def _workload(args: argparse.Namespace, name: str, folder: Path) -> tuple[Any, Any, int]:
    from peers.sampling.workloads import WORKLOADS, shrunk

    workload = shrunk(WORKLOADS[name]) if args.tiny else WORKLOADS[name]
    model = _model(args, workload.model, folder)
    return workload, model, model.config.vocab_size


_PARTS = {"tail": _tail, "epoch": _epoch, "overhead": _overhead, "run": _run}

if __name__ == "__main__":
    main()
