"""Renders and encodes prompts in a child process, under a deadline and a memory limit.

A chat template may loop for ever or make a text that fills the memory, and the patterns of a
tokenizer may take for ever on some texts. Neither can be stopped in this process. One child renders
all prompts of a call and sends a JSON line each.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from polaris_jax.data.prompt_renderer import (
    Prompt,
    PromptRenderer,
    Shots,
    Template,
    Turns,
    template_error,
)
from polaris_jax.system.child import Child, ChildFailure, answers
from polaris_jax.system.foreign import one_line

START_S = 120.0  # for Python and `transformers` on a loaded machine
PROMPT_S = 20.0  # for one prompt; usual are 0.3 ms
GRACE_S = 5.0  # after which a child that is late ends itself: its parent may be gone
MEMORY_BYTES = 8 << 30  # address space, of which the tokenizer takes a small part
_MOST_LINE_BYTES = 128 << 20
_REQUESTS = 100  # that are sent at a time
_START = "from polaris_jax.data.prompt_child import send_prompts; send_prompts()"
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


# A question with its suffix, and the turns before it; or None, and a complete chat.
Content = tuple[str | None, Turns]


class RenderOptions(NamedTuple):
    """How the prompts of a call are rendered; see `render_prompts`."""

    special_tokens: bool
    shots: Shots
    template: Template


class RenderedPrompts:
    """The prompts of one loaded tokenizer, each rendered once. Its copies begin without any."""

    def __init__(self) -> None:
        # Ids as 4 bytes each: a set of 50,000 problems would take half a GiB as tuples.
        self._prompts: dict[tuple[RenderOptions, str, Content], tuple[str, array[int]]] = {}
        self._child: Child | None = None
        self._template: Any = None  # that the child has

    def __reduce__(self) -> tuple[type[RenderedPrompts], tuple[()]]:
        return RenderedPrompts, ()

    def render(
        self,
        tokenizer: Any,
        contents: Sequence[Content],
        options: RenderOptions,
        *,
        names: Sequence[str],
        remember: bool = True,
    ) -> list[Prompt]:
        """The prompts of questions with their suffixes; see `render_prompts`.

        Raises:
            ForeignFileError: a prompt cannot be made within the limits. The text names the
                tokenizer, the problem and the reason.
        """
        template = repr(tokenizer.chat_template)
        keys = [(options, template, content) for content in contents]
        if not remember:
            return self._render(tokenizer, contents, options, names)
        missing = {key: n for n, key in enumerate(keys) if key not in self._prompts}
        if missing:
            asked = [content for *_, content in missing]
            late = [names[n] for n in missing.values()] if names else ()
            new = self._render(tokenizer, asked, options, late)
            compact = ((text, array("i", ids)) for text, ids in new)
            self._prompts |= zip(missing, compact, strict=True)
            if len(missing) > 1:  # a loop over single prompts keeps its child
                self._close()
        found = (self._prompts[key] for key in keys)
        return [(text, tuple(ids)) for text, ids in found]

    def _render(
        self,
        tokenizer: Any,
        contents: Sequence[Content],
        options: RenderOptions,
        names: Sequence[str],
    ) -> list[Prompt]:
        """The prompts, made anew by a child that stays."""
        new: list[Prompt] = []
        try:
            self._ask(tokenizer, contents, options, new)
        except _Refused as refused:
            raise template_error(tokenizer, names[len(new) :], str(refused)) from refused.__cause__
        return new

    def _ask(
        self,
        tokenizer: Any,
        contents: Sequence[Content],
        options: RenderOptions,
        prompts: list[Prompt],
    ) -> None:
        """Appends the prompts of questions as the child sends them.

        A child that refuses a question stays, unless it is broken or has more answers to send.

        Raises:
            _Refused: a question has no prompt.
        """
        try:
            child = self._ready_child(tokenizer)
            for start in range(0, len(contents), _REQUESTS):
                part = contents[start : start + _REQUESTS]
                template = dataclasses.astuple(options.template)
                request = [options.special_tokens, options.shots, template, part]
                child.send(json.dumps(request).encode() + b"\n")
                for number, _ in enumerate(part, 1):
                    line = child.line(silence_s=PROMPT_S, most_bytes=_MOST_LINE_BYTES)
                    answer = json.loads(line)
                    if isinstance(answer, dict):
                        if answer["broken"] or number < len(part):
                            self._close()
                        raise _Refused(answer["reason"])
                    text, ids = answer
                    prompts.append((text, tuple(ids)))
        except ChildFailure as failure:
            self._close()
            reason = {
                "silent": f"it takes more than {PROMPT_S:g} s",
                "ended": f"its process ended with status {failure.status}: it crashed or needs "
                f"more than {MEMORY_BYTES >> 30} GiB",
                "long": "its prompt is too long",
            }[failure.kind]
            raise _Refused(reason) from failure

    def _ready_child(self, tokenizer: Any) -> Child:
        if self._child is not None and self._template == tokenizer.chat_template:
            return self._child
        self._close()
        with tempfile.TemporaryFile() as job:
            pickle.dump(tokenizer, job)
            job.seek(0)
            number = job.fileno()
            child = Child(_START, [str(number)], files=[number], stderr=subprocess.DEVNULL)
            self._child, self._template = child, tokenizer.chat_template
            weakref.finalize(self, child.close)
            child.line(silence_s=START_S, most_bytes=100)
        return child

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Refused(Exception):
    """Why there is no prompt."""


def send_prompts() -> NoReturn:
    """Renders what stdin asks for, with the tokenizer in a file. Runs inside the child.

    The command line has the file's number. A line of stdin is [special_tokens, shots, template,
    questions]. An empty object says that the process is ready; then comes [text, ids] for each
    question, or an object with the reason why there is none, and whether the process is broken.
    """
    os.environ[_NO_ADVICE] = "1"
    with os.fdopen(int(sys.argv[1]), "rb") as job:
        tokenizer = pickle.load(job)  # from our own parent
    renderer = PromptRenderer(tokenizer)
    with answers(memory_bytes=MEMORY_BYTES, watched=False) as out:

        def send(answer: Any) -> None:
            out.write(json.dumps(answer).encode() + b"\n")
            out.flush()

        send({})
        for line in sys.stdin:
            special_tokens, shots, (system, text, args, prefill), contents = json.loads(line)
            template = Template(system, text, tuple(map(tuple, args)), prefill)
            for content in contents:
                signal.setitimer(signal.ITIMER_REAL, PROMPT_S + GRACE_S)
                try:
                    question, before = content
                    answer: Any = renderer.render(
                        question, before, shots, template, special_tokens=special_tokens
                    )
                except BaseException as error:  # noqa: BLE001 - Rust's panics too
                    # A panic may leave a lock of the tokenizer's that nobody can take any more.
                    fine = isinstance(error, Exception) and not isinstance(error, MemoryError)
                    answer = {"reason": one_line(error), "broken": not fine}
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                send(answer)
    os._exit(0)
