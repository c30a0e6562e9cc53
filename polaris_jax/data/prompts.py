"""From a problem's text to the prompt that the model reads: suffix, chat template, token ids.

Two things here are other people's. A chat template is a program, and a tokenizer's patterns may
take for ever on some texts: for a tokenizer that was loaded from files, a child process renders and
encodes (`prompt_child`), under a deadline and a memory limit, once for each text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from polaris_jax.config.data import DataSection
from polaris_jax.config.settings import ConfigError
from polaris_jax.data.prompt_renderer import (
    OWN_TEMPLATE,
    Prompt,
    PromptRenderer,
    Shots,
    Template,
    Turns,
    template_error,
)
from polaris_jax.records import Problem
from polaris_jax.system.files import as_place, cause_of
from polaris_jax.system.foreign import (
    TOKENIZER_PATH,
    ForeignFileError,
    one_line,
    parse_json,
    read_text,
)

RENDERED = "polaris_rendered"  # attribute of a loaded tokenizer: its `RenderedPrompts`
MOST_SHOTS = 64
# Templates that `data.chat_template` knows by name. A turn of ChatML is `<|im_start|>ROLE\nTEXT
# <|im_end|>\n`; nothing is added that the messages do not hold.
NAMED_TEMPLATES = {
    "none": "",
    "chatml": "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How problems become prompts.

    Attributes:
        suffix: text added to each question, those of the worked examples included.
        shots: (question, response) of worked examples, which stand before the problem as turns of
            the chat. Where the tokenizer has no chat template they are paragraphs.
        template: how turns become a text.
        turns: "all" keeps the turns of a problem's chat before its question; "last" leaves them
            out.
    """

    suffix: str = ""
    shots: Shots = ()
    template: Template = OWN_TEMPLATE
    turns: str = "all"

    def render(
        self, tokenizer: Any, problems: Sequence[Problem], *, remember: bool = True
    ) -> list[Prompt]:
        """The prompts of problems; see `render_prompts`."""
        return render_prompts(
            tokenizer,
            [problem.problem for problem in problems],
            suffix=self.suffix,
            shots=self.shots,
            template=self.template,
            turns=[problem.turns if self.turns == "all" else () for problem in problems],
            names=[problem.id for problem in problems],
            remember=remember,
        )

    def opening(self, prompt_text: str, problem_text: str) -> str | None:
        """A prompt's text behind its question: how it begins the response's turn.

        Returns:
            What the chat template and `prefill` write there. None if the template changes the
            question, so that it is not found.
        """
        question = add_suffix(problem_text, self.suffix).strip()  # templates may strip it
        at = prompt_text.rfind(question)
        return prompt_text[at + len(question) :] if at >= 0 else None

    def last_turn(self, prompt_text: str) -> str:
        """A prompt's text after its worked examples."""
        at = 0
        for example in self.shots:
            for text in map(str.strip, example):  # a response may stand in its question, too
                found = prompt_text.find(text, at)
                if found < 0:  # the chat template changes texts
                    return prompt_text
                at = found + len(text)
        return prompt_text[at:]


def prompt_format(data: DataSection) -> PromptFormat:
    """The format that a config's section `data` describes.

    Raises:
        ConfigError: a file that it names is missing or of no use, or `data.template_args` has an
            entry without a value.
    """
    args: dict[str, str] = {}
    for entry in data.template_args:
        name, given, value = entry.partition("=")
        if not given or not name.isidentifier() or name in ("messages", "tools"):
            raise ConfigError(
                f"data.template_args={entry!r}: expected name=value, such as enable_thinking=false"
            )
        try:
            parse_json(value.encode(), where="data.template_args", kind=object)
        except ForeignFileError:
            value = json.dumps(value)  # a word without quotes
        args[name] = value
    template = Template(
        data.system_prompt,
        read_template(data.chat_template),
        tuple(sorted(args.items())),
        data.response_prefill,
    )
    return PromptFormat(data.prompt_suffix, read_shots(data.shots), template, data.turns)


def read_template(name: str) -> str | None:
    """The text of `data.chat_template`: none, chatml, or a file; None for the tokenizer's own.

    Raises:
        ConfigError: there is no such file.
    """
    if not name:
        return None
    if name in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[name]
    named = ", ".join(NAMED_TEMPLATES)
    try:
        return read_text(as_place(name), remedy="give a jinja file")
    except (OSError, ForeignFileError) as error:
        raise ConfigError(
            f"data.chat_template={name}: {cause_of(error)[0]}; name a file with a chat template, "
            f"or one of {named}"
        ) from None


def read_shots(path: str) -> Shots:
    """The worked examples of `data.shots`: JSON lines with "problem" and "response".

    Raises:
        ConfigError: the file is missing, too long, or a line is not an example.
    """
    if not path:
        return ()
    remedy = 'write one {"problem": "...", "response": "..."} a line'
    shots: list[tuple[str, str]] = []
    try:
        lines = read_text(as_place(path), remedy=remedy).split("\n")
    except (OSError, ForeignFileError) as error:
        raise ConfigError(f"data.shots={path}: {cause_of(error)[0]}; {remedy}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line.encode(), where=f"data.shots={path}: line {number}", remedy=remedy)
        texts = [str(row.get(name) or "") for name in ("problem", "response")]
        if not all(text.strip() for text in texts):
            raise ConfigError(f"data.shots={path}: line {number} is not a worked example; {remedy}")
        shots.append((texts[0], texts[1]))
    if not 0 < len(shots) <= MOST_SHOTS:
        raise ConfigError(
            f"data.shots={path}: {len(shots)} examples, expected 1 to {MOST_SHOTS}; {remedy}"
        )
    return tuple(shots)


def add_suffix(text: str, suffix: str) -> str:
    """The text with the instruction suffix, unless it carries that already.

    Benchmark files often bring the suffix with them; whitespace does not count when it is looked
    for. An empty suffix adds nothing and removes nothing.
    """
    words = suffix.split()
    if not words or " ".join(words) in " ".join(text.split()):
        return text
    return text + suffix


def render_prompt(
    tokenizer: Any,
    problem_text: str,
    *,
    suffix: str,
    shots: Shots = (),
    template: Template = OWN_TEMPLATE,
    special_tokens: bool = False,
) -> Prompt:
    """A prompt as text and as token ids; see `render_prompts`."""
    return render_prompts(
        tokenizer,
        [problem_text],
        suffix=suffix,
        shots=shots,
        template=template,
        special_tokens=special_tokens,
    )[0]


def render_prompts(
    tokenizer: Any,
    problem_texts: Sequence[str | None],
    *,
    suffix: str,
    shots: Shots = (),
    template: Template = OWN_TEMPLATE,
    turns: Sequence[Turns] = (),
    special_tokens: bool = False,
    names: Sequence[str] = (),
    remember: bool = True,
) -> list[Prompt]:
    """Prompts as text and as token ids.

    Args:
        tokenizer: a `transformers` tokenizer; its chat template is applied with the generation
            prompt when it has one, else the prompt is the plain text.
        problem_texts: the questions as the data set writes them. None: see `render_chat`.
        suffix: `data.prompt_suffix`.
        shots: worked examples before each question; see `PromptFormat`.
        template: how the turns become a text.
        turns: `Problem.turns` of each question; (): none has any. A system turn among them takes
            the place of the template's.
        special_tokens: True if special tokens that a question spells are meant as such; False
            encodes their characters.
        names: names of the problems, for errors.
        remember: False does not keep the prompts for later calls, for sets of any size.

    Returns:
        A (text, ids) pair each. The text is what the ids spell, special tokens included.

    Raises:
        ForeignFileError: the chat template raises an exception, or takes too long or too much
            memory, for one of the questions.
    """
    contents = [
        (None if text is None else add_suffix(text, suffix), tuple(before))
        for text, before in zip(problem_texts, turns or [()] * len(problem_texts), strict=True)
    ]
    shots = tuple((add_suffix(question, suffix), response) for question, response in shots)
    path = getattr(tokenizer, TOKENIZER_PATH, None)
    if path is None:
        renderer, prompts = PromptRenderer(tokenizer), []
        for number, content in enumerate(contents):
            try:
                prompts.append(
                    renderer.render(*content, shots, template, special_tokens=special_tokens)
                )
            except Exception as error:
                raise template_error(tokenizer, names[number:], one_line(error)) from error
        return prompts
    from polaris_jax.data.prompt_child import RenderedPrompts, RenderOptions

    rendered = tokenizer.__dict__.setdefault(RENDERED, RenderedPrompts())
    options = RenderOptions(special_tokens, shots, template)
    return rendered.render(tokenizer, contents, options, names=names, remember=remember)


def render_chat(tokenizer: Any, turns: Turns, template: Template = OWN_TEMPLATE) -> Prompt:
    """The prompt that answers a chat, whose turns keep their order.

    Args:
        tokenizer: see `render_prompts`.
        turns: (role, text) of each message, see `chats.read_chat`.
        template: how the turns become a text.

    Raises:
        ForeignFileError: see `render_prompts`.
        ValueError: the template leaves a system message out, as some do with all but one of them.
    """
    texts, whole = [None], [turns]
    (prompt,) = render_prompts(
        tokenizer, texts, suffix="", template=template, turns=whole, remember=False
    )
    systems = [number for number, (role, _) in enumerate(turns) if role == "system"]
    if systems not in ([], [0]):
        for number in systems:
            if lacks_question(prompt[0], turns[number][1]):
                raise ValueError(
                    f"messages[{number}]: the model's chat template leaves this system message "
                    "out; put all into one, before the other messages"
                )
    return prompt


def lacks_question(prompt_text: str, problem_text: str) -> bool:
    """True if a rendered prompt does not hold its question, whatever the case and white space."""
    prompt, question = (" ".join(t.split()).casefold() for t in (prompt_text, problem_text))
    return question not in prompt


def render_example(
    tokenizer: Any, problem_text: str, completion: str, *, suffix: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt ids and completion ids of a supervised example; the completion ends in the EOS token.

    Raises:
        ValueError: the tokenizer has no EOS token, so that the model would never learn to stop.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "tokenizer.eos_token_id=None: a supervised example must end in it; set the tokenizer's "
            "eos_token"
        )
    _, prompt_ids = render_prompt(tokenizer, problem_text, suffix=suffix)
    completion_ids = tokenizer.encode(completion, add_special_tokens=False)
    return prompt_ids, (*completion_ids, tokenizer.eos_token_id)
