"""Distinguishes failures at run time from bad input, whatever the type of the error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from polaris_jax.config import ConfigError


@contextlib.contextmanager
def at_run_time(where: Callable[[], str]) -> Iterator[None]:
    """Turns errors of its body into failures, because config and files were checked before.

    Args:
        where: function that returns what was in progress, for the text; called on an error.

    Raises:
        RuntimeError: the body raised a ValueError or FileNotFoundError, which would otherwise end
            the command like bad input (status 2). A `ConfigError` is raised unchanged.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise RuntimeError(
            f"{where()}: {type(error).__name__}: {error} (POLARIS_TRACEBACK=1 shows where)"
        ) from error
