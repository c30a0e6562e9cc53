"""One prompt from its turns: chat template, token ids, and no token that a turn only spells.

A problem's text may spell special tokens, with which it could end its turn and begin another one.
Its ids hold none: the characters are encoded as characters.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polaris_jax.system.foreign import TOKENIZER_PATH, ForeignFileError, shown

# Characters that no text has, from the last private plane: one stands for each special token while
# a prompt is encoded, one for each first character of a token that a question spells while the
# prompt is rendered, and one marks the question's borders. A question that holds any of them and
# spells a token is refused.
_TOKENS_FROM, _CHARS_FROM, _BORDER = 0x100000, 0x108000, "\U0010fffd"
MOST_TEMPLATES = 256  # whose own tokens are known
MOST_CHARS = 4 << 20  # of a rendered prompt
_PRIVATE = re.compile("[\U00100000-\U0010ffff]")


Prompt = tuple[str, tuple[int, ...]]
Shots = tuple[tuple[str, str], ...]
Turns = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Template:
    """How turns become a text.

    Attributes:
        system: text of a system turn before all others; "" for none of ours. Many templates write
            one of their own then.
        text: a chat template in place of the tokenizer's own; "" for none: turns are paragraphs;
            None for the tokenizer's own.
        args: (name, JSON text of the value) of further variables of the template, such as
            enable_thinking.
        prefill: text that begins each response. It is part of the prompt.
    """

    system: str = ""
    text: str | None = None
    args: tuple[tuple[str, str], ...] = ()
    prefill: str = ""


OWN_TEMPLATE = Template()


def template_error(tokenizer: Any, names: Sequence[str], reason: str) -> ForeignFileError:
    """The error of a prompt that cannot be made."""
    path = getattr(tokenizer, TOKENIZER_PATH, None) or getattr(tokenizer, "name_or_path", "")
    where = f"{shown(path)}: " if path else ""
    problem = f" for problem {names[0]!r}" if names else ""
    return ForeignFileError(
        f"{where}the tokenizer's chat template fails{problem} ({reason}); mend its "
        "chat_template.jinja (or tokenizer_config.json), or leave the problem out"
    )


class PromptRenderer:
    """Renders and encodes prompts in this process.

    Args:
        tokenizer: see `render_prompts`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._spelt = _spelt_tokens(tokenizer)
        # (roles, template) -> number of tokens that the template writes
        self._own_tokens: dict[tuple[tuple[str, ...], Template], int] = {}
        self._safe: dict[bool, _SafeEncoder] = {}

    def render(
        self,
        content: str | None,
        before: Turns = (),
        shots: Shots = (),
        template: Template = OWN_TEMPLATE,
        *,
        special_tokens: bool,
    ) -> Prompt:
        """The prompt of one question, its suffix included, after the turns before it.

        None in the place of a question: `before` is the complete chat, which keeps its order. Its
        assistant's thoughts are such to the template, which may leave them out of earlier turns.
        """
        turns = list(before)
        if content is not None:
            turns = [turn for turn in before if turn[0] == "system"]
            for question, response in shots:
                turns += [("user", question), ("assistant", response)]
            turns += [turn for turn in before if turn[0] != "system"]
            turns.append(("user", content))
        templated = self._is_templated(template)
        text = self._templated_text(turns, template)
        if special_tokens or self._spelt is None or not self._may_forge(turns, text, template):
            return text, self._encoded(text, templated=templated)
        if templated not in self._safe:
            self._safe[templated] = _SafeEncoder(self._tokenizer, self._spelt, templated=templated)
        safe = self._safe[templated]
        marked = [
            (role, safe.marked(text, thinks=content is None and role == "assistant"))
            for role, text in turns
        ]
        text = self._templated_text(marked, template)
        return safe.unmarked(text), tuple(safe.encode(text))

    def _is_templated(self, template: Template) -> bool:
        own = getattr(self._tokenizer, "chat_template", None)
        return bool(own if template.text is None else template.text)

    def _templated_text(self, turns: Sequence[tuple[str, str]], template: Template) -> str:
        """The prompt's text. The config's system turn comes first unless the chat has its own."""
        if template.system and not any(role == "system" for role, _ in turns):
            turns = [("system", template.system), *turns]
        if not self._is_templated(template):
            return "\n\n".join(text for _, text in turns) + template.prefill
        messages = [{"role": role, "content": text} for role, text in turns]
        text = self._tokenizer.apply_chat_template(
            messages,
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=True,
            **{name: json.loads(value) for name, value in template.args},
        )
        if len(text) > MOST_CHARS:
            raise ValueError(f"its prompt has {len(text):,} characters, more than {MOST_CHARS:,}")
        return text + template.prefill

    def _encoded(self, text: str, *, templated: bool) -> tuple[int, ...]:
        if not templated:
            return tuple(self._tokenizer.encode(text))
        # The template has written the special tokens, a beginning-of-sequence token among them.
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _may_forge(self, turns: Sequence[tuple[str, str]], text: str, template: Template) -> bool:
        """True if the text may have special tokens that the template did not write.

        `Template.system` and a prefill are the config's own: their special tokens are meant as
        such.
        """
        assert self._spelt is not None
        if any(self._spelt.search(turn) for _, turn in turns):
            return True
        key = tuple(role for role, _ in turns), template
        if key not in self._own_tokens:
            if len(self._own_tokens) >= MOST_TEMPLATES:  # a client of `serve` may name any
                self._own_tokens.clear()
            plain = self._templated_text([(role, "x") for role, _ in turns], template)
            self._own_tokens[key] = len(self._spelt.findall(plain))
        # A border of template and question may spell one too.
        return len(self._spelt.findall(text)) != self._own_tokens[key]


def _added_tokens(tokenizer: Any) -> dict[str, Any]:
    """Special and added tokens; not runs of white space, which texts are full of."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content: token for token in added.values() if token.content.strip()}


def _spelt_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern of all special and added tokens; None without any, or without a fast tokenizer."""
    if getattr(tokenizer, "backend_tokenizer", None) is None or not _added_tokens(tokenizer):
        return None
    return _pattern(tokenizer)


def _pattern(
    tokenizer: Any, *, as_words: bool = False, without: Collection[str] = ()
) -> re.Pattern[str]:
    """A pattern of all special and added tokens, the longest first.

    Args:
        tokenizer: has at least one such token.
        as_words: True matches a token that is a word of its own only where it is one.
        without: tokens that are no part of it. Without any other it matches nothing.
    """
    added = {t: token for t, token in _added_tokens(tokenizer).items() if t not in without}
    if not added:
        return re.compile(r"(?!)")
    words = {text for text, token in added.items() if as_words and token.single_word}
    texts = [
        rf"(?<!\w){re.escape(text)}(?!\w)" if text in words else re.escape(text)
        for text in sorted(added, key=len, reverse=True)
    ]
    firsts = "".join(re.escape(char) for char in sorted({text[0] for text in added}))
    return re.compile(f"(?=[{firsts}])(?:{'|'.join(texts)})")  # which few places reach


class _SafeEncoder:
    """Encodes rendered prompts so that the special tokens of the question are plain characters.

    The question is rendered with its tokens' first characters replaced, so the tokens that a
    rendered prompt spells are the template's. Those are replaced by characters that a copy of the
    tokenizer knows as its special tokens, in place of the original ones. The copy splits, merges
    and normalises as the tokenizer does: ids of prompts without such questions would be the same.

    Args:
        tokenizer: a fast tokenizer.
        spelt: pattern of its special and added tokens.
        templated: False adds the tokens that the tokenizer puts around plain text.
    """

    def __init__(self, tokenizer: Any, spelt: re.Pattern[str], *, templated: bool) -> None:
        self._spelt, self._own = spelt, _pattern(tokenizer, as_words=True)
        ids = _added_tokens(tokenizer)
        self._plain = tuple(text for text, token in ids.items() if not token.special)
        self._special = _pattern(tokenizer, without=self._plain)
        if len(ids) > _CHARS_FROM - _TOKENS_FROM:
            raise ValueError(f"the tokenizer has {len(ids):,} special tokens")
        self._names = {text: chr(_TOKENS_FROM + i) for i, text in enumerate(ids)}
        ends = sorted({char for text in ids for char in (text[0], text[-1])})
        self._hidden = {char: chr(_CHARS_FROM + i) for i, char in enumerate(ends)}
        shown = {ord(hidden): char for char, hidden in self._hidden.items()}
        self._unmarked = str.maketrans(shown | {ord(_BORDER): ""})
        self._backend, self._ids = _renamed(tokenizer.backend_tokenizer, self._names)
        self._around: tuple[list[int], list[int]] = [], []
        if not templated:
            with_special = list(tokenizer.encode("x"))
            plain = list(tokenizer.encode("x", add_special_tokens=False))
            before = next(
                n for n in range(len(with_special)) if with_special[n : n + len(plain)] == plain
            )
            self._around = with_special[:before], with_special[before + len(plain) :]

    def marked(self, content: str, *, thinks: bool = False) -> str:
        """The question in which no token is spelt, nor together with what stands at its borders.

        Templates may strip a question, so white space at its ends stays there.

        Args:
            content: the question.
            thinks: True leaves added tokens that are not special, such as </think>: templates look
                for them in an answer, and they end no turn.

        Raises:
            ValueError: the question has characters of the last private plane.
        """
        if private := _PRIVATE.search(content):
            raise ValueError(f"the problem has the private character {private[0]!a}")
        start, end = len(content) - len(content.lstrip()), len(content.rstrip())
        spelt = self._special if thinks else self._spelt
        before = "" if thinks and content.startswith(self._plain, start) else _BORDER
        behind = "" if thinks and content.endswith(self._plain, start, end) else _BORDER
        if end > start:
            # A token may end with the first character, or behind it, or begin with the last one.
            first, inner, last = content[start], content[start + 1 : end - 1], content[end - 1]
            if before:
                first = self._hidden.get(first, first)
            if behind:
                last = self._hidden.get(last, last)
            whole = f"{first}{before}{inner}{behind}{last}" if end - start > 1 else first
            content = f"{content[:start]}{whole}{content[end:]}"
        while spelt.search(content):
            content = spelt.sub(lambda m: self._hidden[m[0][0]] + m[0][1:], content)
        return content

    def unmarked(self, text: str) -> str:
        """A rendered text with its own characters."""
        return text.translate(self._unmarked)

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text whose question is `marked`."""
        named = self._own.sub(lambda m: self._names[m[0]], text)
        ids: list[int] = self._backend.encode(self.unmarked(named), add_special_tokens=False).ids
        before, after = self._around
        return [*before, *(self._ids.get(i, i) for i in ids), *after]


def _renamed(backend: Any, names: Mapping[str, str]) -> tuple[Any, dict[int, int]]:
    """A copy of a tokenizer whose special tokens have other texts, and its ids of the original's.

    Args:
        backend: a `tokenizers.Tokenizer`.
        names: the new text of each token to rename.

    Returns:
        (copy, {id in the copy: id in the original}); other ids are equal.
    """
    from tokenizers import AddedToken, Tokenizer

    fields = json.loads(backend.to_str())
    added, model = fields["added_tokens"], fields["model"]
    fields |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    # Models may have special tokens in their own vocabulary, where texts would find them.
    vocab = model.get("vocab", {})
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): i for text, i in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), *rest] for text, *rest in vocab]
    if "merges" in model:
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [p for p in pairs if not any(t in names for t in (*p, "".join(p)))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    copy = Tokenizer.from_str(json.dumps(fields))
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = [
        AddedToken(names.get(token["content"], token["content"]), **{f: token[f] for f in flags})
        for token in added
    ]
    copy.add_special_tokens([token for token in tokens if token.special])
    copy.add_tokens([token for token in tokens if not token.special])
    new_ids: list[Any] = [copy.token_to_id(token.content) for token in tokens]
    return copy, dict(zip(new_ids, (old["id"] for old in added), strict=True))
