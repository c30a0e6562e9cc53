"""Responses to a file of prompts or chats, as JSON lines; a rerun continues where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.data.chats import read_chat
from polaris_jax.data.prompt_renderer import Template
from polaris_jax.data.prompts import add_suffix, render_chat, render_prompts
from polaris_jax.models.positions import warn_beyond
from polaris_jax.models.weights.identity import model_inputs
from polaris_jax.models.weights.sources import files_digest
from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.settings import per_prompt
from polaris_jax.run.owner import owned
from polaris_jax.run.progress_file import ProgressFile, identity_path
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.foreign import ForeignFileError, bounded_lines, open_regular, parse_json
from polaris_jax.system.progress import Progress

SLOTS = 32
PAGE_SIZE = 16
AHEAD = 4  # times the slots: responses in work
HELD = 64  # times the slots: with those that wait for an earlier row, since rows are in order
SEEDS = 2**32
OURS = ("row", "sample", "text", "tokens", "finish_reason", "seed")
AS_IS = Template(text="{{ messages[0]['content'] }}")  # adds no token of its own, either
REMEDY = 'write {"prompt": "..."} or {"messages": [...]} a line'


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the responses depend on beside model and prompts.

    Attributes:
        n: responses a row.
        temperature: 0 is greedy.
        top_p: 1 is off.
        top_k: 0 is off.
        min_p: 0 is off.
        max_tokens: budget of a response.
        seed: seed of every row that has none of its own.
        suffix: appended to each prompt, or the last message, unless it ends so already. The last
            message must be the user's then.
        raw: True leaves out chat template and suffix of prompts; chats keep the template.
        dtype: compute type.
        yarn: YaRN's factor and original length; (1, 0): off.
    """

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    seed: int
    suffix: str
    raw: bool
    dtype: str
    yarn: tuple[float, int]


@dataclasses.dataclass(frozen=True)
class _Row:
    number: int
    fields: Mapping[str, Any]
    seed: int
    prompt: array[int]


def complete_file(
    source: epath.Path,
    out: epath.Path,
    settings: Settings,
    *,
    path: str,
    model: Any,
    tokenizer: Any,
    stop_ids: Sequence[int],
    progress: Progress,
) -> tuple[int, int]:
    """Writes n lines for each row of `source`, in its order.

    A line has the row's own fields, and row (its line number), sample, text, tokens,
    finish_reason, seed. An own field of such a name becomes `input_NAME`; a row's own seed is
    used. Rows of equal prompt and seed get equal responses. A killed call loses the rows that are
    not written yet; the file that a rerun completes has the bytes of an uninterrupted one.

    Args:
        source: JSON lines with `prompt` (a text) or `messages` (a chat).
        out: where the lines go; `X.identity.json` beside it records what they depend on.
        settings: sampling settings.
        path: where the model was read from.
        model: the model.
        tokenizer: its tokenizer.
        stop_ids: ids that end a response.
        progress: gets lines and a bar.

    Returns:
        (rows, rows that were there before).

    Raises:
        ConfigError: a row cannot be read or is too long, or the lines of `out` have other inputs.
        ValueError: a setting is out of range. Nothing has changed then.
    """
    per_prompt(_params(settings, settings.seed % SEEDS, stop_ids), 0)  # before `out` is touched
    with owned(
        out.parent,
        out.name,
        busy=f"--out={out}: `polaris generate` already writes to it",
        remedy="name another --out",
        writes=(out.name, identity_path(out).name),
    ):
        rows = list(_read(source, settings, tokenizer))  # a damaged file leaves `out` as it is
        inputs = model_inputs(path, tokenizer, model.config)
        done = ProgressFile(
            out,
            dataclasses.asdict(settings),
            key=("row", "sample"),
            inputs=inputs | {"prompts": files_digest([source], completely=True)},
            places=dict.fromkeys(inputs, f"--model={path}") | {"prompts": f"--input={source}"},
            unit=settings.n,
            valid=lambda row: isinstance(row.get("text"), str),
        )
        finished = {row["row"] for row in done.rows}
        done.rows.clear()  # an output may be long
        if finished:
            progress.line(f"resumed after {len(finished)} of {len(rows)} rows")
        left = [row for row in rows if row.number not in finished]
        with at_run_time(lambda: f"--input={source}"):
            sampler = _sampler(rows, settings, model)  # its sizes do not depend on what is left
            warn_beyond(model.config, sampler.config.max_len, progress.line)
            _sample(left, len(rows), done, settings, sampler, tokenizer, stop_ids, progress)
        return len(rows), len(finished)


def _read(source: epath.Path, settings: Settings, tokenizer: Any) -> Iterator[_Row]:
    """The rows of the input, encoded.

    Raises:
        ConfigError: a line is no row, or the input has none.
    """
    found = 0
    with open_regular(source) as file:
        for number, line in bounded_lines(file):
            where = f"{source}, line {number}"
            if line is None:
                raise ConfigError(f"{where}: too long; {REMEDY}")
            fields = parse_json(line, where=where, remedy=REMEDY)
            seed = settings.seed if fields.get("seed") is None else fields["seed"]
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise ConfigError(f"{where}: seed must be a whole number")
            ids = _prompt(fields, settings, tokenizer, where)
            if not ids:
                raise ConfigError(f"{where}: the prompt has no token; {REMEDY}")
            yield _Row(number, fields, seed % SEEDS, array("i", ids))
            found += 1
    if not found:
        raise ConfigError(f"--input={source}: it has no row; {REMEDY}")


def _prompt(
    fields: Mapping[str, Any], settings: Settings, tokenizer: Any, where: str
) -> Sequence[int]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, list) and messages is None:  # a chat in TRL's form
        prompt, messages = None, prompt
    if (prompt is None) == (messages is None):
        raise ConfigError(f"{where}: needs either a prompt or messages; {REMEDY}")
    try:
        if messages is not None:
            *turns, (role, text) = read_chat(messages)
            if role != "user" and settings.suffix:
                raise ForeignFileError(
                    f"messages[{len(turns)}].role={role}: --suffix goes to the last "
                    "message, which must be the user's then; leave the suffix out with --suffix="
                )
            last = role, add_suffix(text, settings.suffix)
            return render_chat(tokenizer, (*turns, last))[1]
        if not isinstance(prompt, str) or not prompt:
            raise ValueError("prompt: must be a text, and not empty")
        return render_prompts(
            tokenizer,
            [prompt],
            suffix="" if settings.raw else settings.suffix,
            template=AS_IS if settings.raw else Template(),
            special_tokens=settings.raw,
            remember=False,
        )[0][1]
    except ForeignFileError as error:
        raise ConfigError(f"{where}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; {REMEDY}") from None


def _sampler(rows: Sequence[_Row], settings: Settings, model: Any) -> Sampler:
    longest = max(len(row.prompt) for row in rows)
    max_len = longest + settings.max_tokens
    slots = min(SLOTS, len(rows) * settings.n)
    return Sampler(
        model,
        SamplerConfig(
            slots=slots,
            page_size=PAGE_SIZE,
            num_pages=0,  # what the device has room for
            max_len=max_len,
            prefill_chunk=min(128, max(16, longest)),
        ),
    )


def _sample(
    rows: Sequence[_Row],
    total: int,
    done: ProgressFile,
    settings: Settings,
    sampler: Sampler,
    tokenizer: Any,
    stop_ids: Sequence[int],
    progress: Progress,
) -> None:
    """Keeps a number of rows in work, and writes the finished rows at their beginning."""
    waiting = iter(rows)
    window = max(1, AHEAD * sampler.config.slots // settings.n)
    most = max(1, HELD * sampler.config.slots // settings.n)
    working: list[tuple[_Row, Request]] = []
    written, tokens = total - len(rows), 0
    with progress.phase("generate", total * settings.n, before=written * settings.n) as phase:
        while True:
            unfinished = sum(not request.done for _, request in working)
            room = max(0, min(window - unfinished, most - len(working)))
            for row in itertools.islice(waiting, room):
                params = _params(settings, row.seed, stop_ids)
                working.append((row, sampler.submit([row.prompt], params)))
            if not working:
                break
            sampler.step()
            lines = []
            while working and working[0][1].done:
                row, request = working.pop(0)
                sampler.poll(request)  # raises what went wrong
                (responses,) = request.responses()
                tokens += sum(len(response.token_ids) for response in responses)
                lines += [_line(row, s, one, tokenizer) for s, one in enumerate(responses)]
                written += 1
            if lines:
                done.append(lines)
            ahead = sum(request.num_done for _, request in working)
            phase.advance_to(written * settings.n + ahead, f"{tokens:,} tokens")


def _params(settings: Settings, seed: int, stop_ids: Sequence[int]) -> SamplingParams:
    names = ("n", "temperature", "top_p", "top_k", "min_p", "max_tokens")
    chosen = {name: getattr(settings, name) for name in names}
    return SamplingParams(**chosen, seed=seed, stop_token_ids=tuple(stop_ids))


def _line(row: _Row, sample: int, response: Response, tokenizer: Any) -> dict[str, Any]:
    own = {f"input_{k}" if k in OURS and k != "seed" else k: v for k, v in row.fields.items()}
    return own | {
        "row": row.number,
        "sample": sample,
        "text": tokenizer.decode(list(response.token_ids), skip_special_tokens=True),
        "tokens": len(response.token_ids),
        "finish_reason": response.finish_reason,
        "seed": row.seed,
    }
