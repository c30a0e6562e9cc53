"""Failures at run time, told apart from bad input, whatever type of error they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from polaris_jax.config import ConfigError


@contextlib.contextmanager
def at_run_time(where: Callable[[], str]) -> Iterator[None]:
    """What fails inside is no bad input: config and files were found good before.

    Args:
        where: what was under way, for the error's text; asked when something fails.

    Raises:
        RuntimeError: in place of a ValueError or FileNotFoundError, which end a command as bad
            input does (status 2); a `ConfigError` stays one.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise RuntimeError(
            f"{where()}: {type(error).__name__}: {error} (POLARIS_TRACEBACK=1 shows where)"
        ) from error
