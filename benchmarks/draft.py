"""What drafts from history save: our sampler with `draft=history` beside itself without.

    python benchmarks/draft.py [--parts tail,epoch,overhead] [--rounds 3] [--out FILE]
    python benchmarks/draft.py --parts=run --run=WORKDIR --config=FILE [--steps_ago=20] \
        [--older=CHECKPOINT]

tail: 4 live rows of SmolLM2-135M, 256 tokens each. The history is of two kinds, both SIMULATED:
four responses to each prompt by the same weights with noise of --noise of each entry, which stand
for a policy some updates older; and the response itself with a share of its tokens exchanged, which
shows how speed follows from what is accepted. epoch: workload S2 of `benchmarks/sampler.py` (8
prompts x 4, long-tailed lengths) with other seeds, and with the same two kinds of history.
overhead: S1 and S2 without any history.

run: nothing is simulated. The prompts of a finished run's step, --steps_ago updates before its last
checkpoint, are sampled anew by the weights of that checkpoint, with the responses of then as
history, as in an epoch of that many steps: 4 rows (the tail of a rollout), and 4 rows for each of
the step's prompts. Responses end as in the run, so a share of the accepted tokens can be planned
with. Their ids are those of the stored texts. With --older, a checkpoint that is as many updates
older, a third line has S2's long-tailed lengths: stop ids are ignored, and the history is what the
older weights say to the same prompts at such lengths.

Of a tail the time behind each row's first token counts: its prompts were read long before. The
others include their prompts. Temperature 1, stop ids ignored but in part run, float32, 2 threads.
Both sides are one sampler whose drafting is switched: two samplers of one process differ by up to a
seventh by where their weights lie in memory. They take turns, --rounds rounds with seeds of their
own; medians. Compilation is apart: a first call of each is not counted. Tokens of both are
compared, and responses that differ are counted: one in 10,000 tokens may, by rounding.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
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
    parser.add_argument("--older", default="", help="a checkpoint --steps_ago updates older")
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


def _sampler(args: argparse.Namespace, model: Any, *, rows: int, max_len: int) -> Any:
    """A sampler that drafts, until `_switch` says otherwise."""
    from polaris_jax.rollout import Sampler, SamplerConfig
    from polaris_jax.rollout.draft_costs import NO_COSTS

    config = SamplerConfig(
        slots=rows, num_pages=0, max_len=max_len, draft="history", draft_tokens=args.draft_tokens
    )
    sampler = Sampler(model, config)
    if args.tiny:  # so small a model would never draft
        sampler._engine.draft_costs = NO_COSTS
    return sampler


def _switch(sampler: Any, *, on: bool) -> None:
    """Sets whether an idle sampler drafts; its counts continue."""
    from polaris_jax.rollout.drafting import drafting_of

    driver, off = sampler._live.ready(), dataclasses.replace(sampler.config, draft="off")
    counts = driver.drafting.counts
    driver.drafting = drafting_of(sampler._engine if on else SimpleNamespace(config=off))
    driver.drafting.counts = counts


def _generate(
    sampler: Any, asked: Asked, *, after_first: bool = False
) -> tuple[float, list[list[int]]]:
    """Samples a round; (tokens/s, the responses' tokens).

    after_first: True leaves out the time and the tokens until each row has a token. So the rows
        are those of a rollout's tail, whose prompts were read long before.
    """
    from polaris_jax.rollout import SamplingParams

    params = SamplingParams(
        temperature=1.0, max_tokens=asked.tokens, seed=asked.seeds, stop_token_ids=asked.stop
    )
    sampler.drop_prefixes()
    began_s, before = time.perf_counter(), 0
    request = sampler.submit(asked.prompts, params, history=asked.history)
    while not request.done:
        sampler.step()
        if after_first and not before:
            sizes = [len(group[0].token_ids) for group in request.responses()]
            if all(sizes):
                began_s, before = time.perf_counter(), sum(sizes)
    took_s = time.perf_counter() - began_s
    tokens = [list(group[0].token_ids) for group in request.responses()]
    return (sum(map(len, tokens)) - before) / took_s, tokens


def _line(part: str, history: str, sampler: Any, rounds: Sequence[Asked]) -> str:
    """A row of the table: the rounds without drafts and with them in turn, the first not counted.

    A tail is timed from when each row has a token.
    """
    rates: dict[str, list[float]] = {"off": [], "on": []}
    tokens: dict[str, list[list[int]]] = {}
    differing = 0
    for number, asked in enumerate(rounds):
        if number == 1:
            sampler.reset_stats()
        for name in ("off", "on") if number % 2 else ("on", "off"):
            _switch(sampler, on=name == "on")
            rate, tokens[name] = _generate(sampler, asked, after_first=part.endswith("tail"))
            if number:
                rates[name].append(rate)
        if number:
            differing += sum(a != b for a, b in zip(tokens["off"], tokens["on"], strict=True))
    ratios = [on / off for off, on in zip(rates["off"], rates["on"], strict=True)]
    stats = sampler.stats()
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
    older = _sampler(args, _noisy(model, args.noise), **sizes)
    sampler = _sampler(args, model, **{**sizes, "rows": ROWS})

    every = [prompt for prompt in prompts for _ in range(HISTORY)]
    seeds = [10_000 + number for number in range(len(every))]
    former = _said(older, every, [length] * len(every), seeds)[::HISTORY]
    rounds = _rounds(args, prompts, itertools.repeat([length] * ROWS), former)
    yield _line("tail", f"weights with noise {args.noise:g}", sampler, rounds)
    yield from _by_share("tail", sampler, rounds, vocab)


def _rounds(
    args: argparse.Namespace,
    prompts: list[list[int]],
    lengths: Iterable[list[int]],
    history: list[list[list[int]]],
    stop: tuple[int, ...] = (),
) -> list[Asked]:
    """One round that is not counted, and `--rounds` more; each has seeds of its own."""
    return [
        Asked(prompts, tokens, [1000 * n + i for i in range(len(prompts))], history, stop)
        for n, tokens in zip(range(args.rounds + 1), lengths, strict=False)
    ]


def _by_share(part: str, sampler: Any, rounds: Sequence[Asked], vocab: int) -> Iterator[str]:
    """The rounds again, with a share of each response's own tokens exchanged as its history."""
    none: list[list[list[int]]] = [[]] * len(rounds[0].prompts)
    own = [_generate(sampler, dataclasses.replace(asked, history=none))[1] for asked in rounds]
    for share in EXCHANGED:
        again = [
            dataclasses.replace(asked, history=[[_exchanged(t, share, vocab)] for t in texts])
            for asked, texts in zip(rounds, own, strict=True)
        ]
        yield _line(part, f"the response, {share:.0%} exchanged", sampler, again)


def _exchanged(text: list[int], share: float, vocab: int) -> list[int]:
    pick = random.Random(len(text))
    return [pick.randrange(1, vocab) if pick.random() < share else token for token in text]


def _epoch(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    workload, model, vocab = _workload(args, "S2", folder)
    from peers.sampling.workloads import requests

    first = requests(workload, 0, vocab)
    prompts = [request.prompt for request in first]
    sizes = {"rows": workload.num_requests, "max_len": workload.max_len}
    older = _sampler(args, _noisy(model, args.noise), **sizes)
    lengths = [request.tokens for request in first]
    former = _said(older, prompts, lengths, [request.seed for request in first])
    dealt = ([r.tokens for r in requests(workload, n, vocab)] for n in itertools.count())
    rounds = _rounds(args, prompts, dealt, former)
    sampler = _sampler(args, model, **sizes)
    yield _line("epoch, S2", f"weights with noise {args.noise:g}", sampler, rounds)
    yield from _by_share("epoch, S2", sampler, rounds, vocab)


def _said(
    sampler: Any, prompts: list[list[int]], lengths: list[int], seeds: list[int]
) -> list[list[list[int]]]:
    """The history of each prompt: what a sampler says to it, and to prompts that are equal."""
    none: list[list[list[int]]] = [[]] * len(prompts)
    _, texts = _generate(sampler, Asked(prompts, lengths, seeds, none))
    return [[t for p, t in zip(prompts, texts, strict=True) if p == own] for own in prompts]


def _overhead(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    from peers.sampling.workloads import requests

    for name in ("S1", "S2"):
        workload, model, vocab = _workload(args, name, folder)
        sampler = _sampler(args, model, rows=workload.num_requests, max_len=workload.max_len)
        rounds = []
        for number in range(args.rounds + 1):
            asked = requests(workload, number, vocab)
            prompts, tokens = [r.prompt for r in asked], [r.tokens for r in asked]
            rounds.append(Asked(prompts, tokens, [r.seed for r in asked], [[]] * len(asked)))
        yield _line(f"overhead, {name}", "none", sampler, rounds)


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
        sampler = _sampler(args, model, rows=len(rows), max_len=length)
        texts, history = [prompts[name] for name in rows], [earlier[name] for name in rows]
        lengths = itertools.repeat([most] * len(rows))
        rounds = _rounds(args, texts, lengths, history, stop)
        yield _line(f"run, {part}", f"step {step} of {last}", sampler, rounds)
    if args.older:
        yield _long_tailed(args, model, [prompts[name] for name in every for _ in range(ROWS)])


def _long_tailed(args: argparse.Namespace, model: Any, prompts: list[list[int]]) -> str:
    """A run's prompts with S2's lengths, behind what the older weights said at such lengths."""
    from peers.sampling.workloads import WORKLOADS, lengths

    from polaris_jax.checkpoint.convert import load_any

    workload = dataclasses.replace(WORKLOADS["S2"], prompts=len(prompts), samples=1)
    pick = random.Random("lengths")

    def dealt() -> list[int]:
        tokens = lengths(workload)
        pick.shuffle(tokens)
        return tokens

    longest = max(map(len, prompts)) + workload.response_tokens[1]
    sizes = {"rows": len(prompts), "max_len": longest}
    older = _sampler(args, load_any(args.older)[0], **sizes)
    former = _said(older, prompts, dealt(), [99_000 + i for i in range(len(prompts))])
    rounds = _rounds(args, prompts, (dealt() for _ in itertools.count()), former)
    sampler = _sampler(args, model, **sizes)
    return _line("run, epoch, S2's lengths", f"weights of {args.older}", sampler, rounds)


def _workload(args: argparse.Namespace, name: str, folder: Path) -> tuple[Any, Any, int]:
    from peers.sampling.workloads import WORKLOADS, shrunk

    workload = shrunk(WORKLOADS[name]) if args.tiny else WORKLOADS[name]
    model = _model(args, workload.model, folder)
    return workload, model, model.config.vocab_size


_PARTS = {"tail": _tail, "epoch": _epoch, "overhead": _overhead, "run": _run}

if __name__ == "__main__":
    main()
