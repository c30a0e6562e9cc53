"""Chats in the form of OpenAI's API: checked, as the turns that prompts are rendered from."""

from __future__ import annotations

from typing import Any

from polaris_jax.data.prompt_renderer import Turns

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Parts of a message that a prompt would lack. Clients send them empty in answers of ours.
UNREAD = ("tool_calls", "function_call", "audio")


def read_chat(messages: Any) -> Turns:
    """(role, text) of each message, in their order.

    A developer's message counts as the system's. Content in parts is their texts, joined.

    Args:
        messages: value of the field `messages`.

    Raises:
        ValueError: this is no chat. The text names the message.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('messages: needed, a list like [{"role": "user", "content": "Hello"}]')
    found: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"messages[{index}].role: must be one of {', '.join(ROLES)}")
        for name in UNREAD:
            if message.get(name):
                raise ValueError(f"messages[{index}].{name}: not supported here; leave it out")
        found.append((ROLES[role], _text(message.get("content"), index)))
    return tuple(found)


def _text(content: Any, index: int) -> str:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = []
    for part in parts if isinstance(parts, list) else [None]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ValueError(f"messages[{index}].content: must be a text, or parts of type text")
        texts.append(text)
    return "".join(texts)
