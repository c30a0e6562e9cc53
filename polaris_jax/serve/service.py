"""What the application serves: model, tokenizer, worker, and who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from polaris_jax.data.prompt_renderer import Template
from polaris_jax.data.prompts import render_chat, render_prompts
from polaris_jax.serve.answers import Vocabulary
from polaris_jax.serve.fields import ApiError
from polaris_jax.serve.gauges import Gauges
from polaris_jax.serve.http import Door, Limits
from polaris_jax.serve.jobs import Event, Job
from polaris_jax.serve.weights import Updates
from polaris_jax.serve.wishes import Wish
from polaris_jax.serve.worker import Worker
from polaris_jax.system.foreign import ForeignFileError


class Inboxes:
    """Takes events from the worker's thread to the queues of the requests that wait for them.

    Attributes:
        loop: the event loop of these requests; None before `open`.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Delivers to the running event loop from now on."""
        self.loop = asyncio.get_running_loop()

    def post(self, events: list[tuple[Job, Event]]) -> None:
        """Called by the worker's thread."""
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._deliver, events)

    @staticmethod
    def _deliver(events: list[tuple[Job, Event]]) -> None:
        for job, one in events:
            job.inbox.put_nowait(one)


class Prompts:
    """Encodes prompts, one request after the other, without holding up the event loop.

    For a tokenizer that was loaded from files a child process does it, under limits.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    def start(self) -> None:
        """Starts the child process, so that no request waits for it.

        Raises:
            ForeignFileError: the tokenizer fails.
        """
        self._encoded(["0"])

    async def encode(self, wish: Wish) -> list[tuple[int, ...]]:
        """Token ids of each prompt of a wish.

        Raises:
            ApiError: the chat template or the tokenizer fails on it, or takes too long.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.render, wish)

    def render(self, wish: Wish) -> list[tuple[int, ...]]:
        """See `encode`; in this thread."""
        try:
            if wish.chat:
                template = Template(args=wish.template_args)
                return [render_chat(self._tokenizer, wish.messages, template)[1]]
            texts = [prompt for prompt in wish.prompts if isinstance(prompt, str)]
            found = iter(self._encoded(texts))
            return [next(found) if isinstance(p, str) else p for p in wish.prompts]
        except ForeignFileError as error:
            found = re.search(r" fails[^(]*\((.*)\); mend ", str(error))
            reason = found[1] if found else "no reason given"
            field = "messages" if wish.chat else "prompt"
            remedy = (
                "send roles in an order that the model's template takes"
                if wish.chat
                else "send other texts, or token ids"
            )
            raise ApiError(
                400,
                f"{field}: the chat template or the tokenizer fails on it ({reason}); {remedy}",
                param=field,
            ) from None
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None

    def _encoded(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        if not texts:
            return []
        prompts = render_prompts(
            self._tokenizer,
            texts,
            suffix="",
            template=Template(text=""),
            special_tokens=True,
            remember=False,
        )
        return [ids for _, ids in prompts]

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclasses.dataclass
class Service:
    """What the application serves.

    Attributes:
        name: the model's name.
        tokenizer: its tokenizer.
        end_ids: ids that end a response.
        max_len: most tokens of prompt and response.
        slots: sequences decoded at once.
        worker: owns the sampler.
        inboxes: what the worker posts to.
        updates: brings new weights; None: they never change.
        allow_update: True lets clients name a directory of new weights.
        door: who may come in.
        limits: what a client may take.
        log: prints a line.
    """

    name: str
    tokenizer: Any
    end_ids: tuple[int, ...]
    max_len: int
    slots: int
    worker: Worker
    inboxes: Inboxes
    updates: Updates
    allow_update: bool
    door: Door
    limits: Limits
    log: Callable[[str], None]
    gauges: Gauges = dataclasses.field(default_factory=Gauges)

    def __post_init__(self) -> None:
        self.prompts, self.vocabulary = Prompts(self.tokenizer), Vocabulary(self.tokenizer)
        self.created = int(time.time())

    async def job(self, wish: Wish) -> Job:
        """What the worker is asked for a wish: its prompts are encoded, its settings checked.

        `Worker.kept_room` comes first, so that nothing is encoded for a full queue.

        Raises:
            ApiError: a prompt cannot be encoded, or a setting does not fit the model, or the answer
                would be too large.
        """
        prompts = await self.prompts.encode(wish)
        wish.require_small_answer(prompts, max_len=self.max_len)
        params = wish.params(
            tuple(prompts),
            max_len=self.max_len,
            end_ids=self.end_ids,
            decode=self.vocabulary.text,
        )
        return Job(
            prompts,
            params,
            top=wish.top,
            temperature=wish.settings["temperature"],
            scores=wish.scored,
            inbox=asyncio.Queue(),
        )
