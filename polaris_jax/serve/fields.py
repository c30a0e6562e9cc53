"""The fields of a request's body, and the error that names one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polaris_jax.system.text import printable

MOST_NAME_CHARS = 60


class ApiError(Exception):
    """An answer in the API's error form.

    Attributes:
        status: HTTP status.
        text: what is wrong and what to do, for the client.
        kind: `type` of the error object.
        param: field of the body that is wrong; None: no single one.
        code: `code` of the error object; None: none.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.kind, self.param, self.code = status, text, kind, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object that clients read."""
        return {
            "error": {
                "message": printable(self.text, lines=True),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class Fields:
    """The fields of a body, with errors that name them. A field that is null is absent."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def error(self, name: str, text: str) -> ApiError:
        """A 400 that names the field and the beginning of its value."""
        shown = ""
        for piece in json.JSONEncoder(ensure_ascii=False).iterencode(self._body.get(name)):
            shown += piece[:61]  # a value may have megabytes
            if len(shown) > 60:
                shown = f"{shown[:60]}..."
                break
        return ApiError(400, f"{name}={shown}: {text}", param=name)

    def value(self, name: str) -> Any:
        """The field as it is; None if it is absent."""
        return self._body.get(name)

    def get(self, name: str, kind: type, default: Any) -> Any:
        """A text, an object or a list."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            expected = {str: "a text", dict: "an object", list: "a list"}[kind]
            raise self.error(name, f"must be {expected}")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if it is absent."""
        value = self._body.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return bool(value)

    def whole(self, name: str, default: Any, *, least: int | None = None, most: int = 2**63) -> Any:
        """A whole number; 3.0 is one, too."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "must be a whole number")
        least = -most if least is None else least
        if not least <= value <= most:
            plain = value < least and most == 2**63
            rule = f"at least {least}" if plain else f"in [{least}, {most}]"
            raise self.error(name, f"must be {rule}")
        return value

    def real(self, name: str, default: float, *, least: float, most: float) -> float:
        """A number in [least, most]."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        if not least <= value <= most:  # nor is NaN, which no comparison holds for
            raise self.error(name, f"must be in [{least:g}, {most:g}]")
        return float(value)
