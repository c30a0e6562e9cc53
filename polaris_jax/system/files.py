"""Files on a disk or in an object store: complete or absent, and durable when a call returns.

Every path of a run is an `epath.Path`. On a disk a file is written beside its place, synced and
renamed over it. In an object store (gs://, s3://) a file is one put, which is complete or absent.
A kill at any moment, or a full disk, leaves the old content or the new content, never a part of it.
Directories are never renamed: a store has no directories, and a bucket mounted as a disk renames
them object by object.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import importlib.util
import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from polaris_jax.config.settings import ConfigError

if TYPE_CHECKING:
    from etils import epath
else:
    try:
        from etils import epath
    except ModuleNotFoundError:  # `polaris grade` and `polaris doctor` do without, on a disk
        import pathlib as epath

AnyPath = str | os.PathLike[str]

PARTIAL = ".partial"
_PARTIAL_OF = re.compile(r"(.+?)(\.[0-9a-f]{8})?\.partial")  # versions to 0.2 had no number in it
# What fsspec needs for a scheme: the package, and our extra that brings it.
_STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def is_remote(path: AnyPath) -> bool:
    """True if a path is in an object store (gs://, s3://), which has no mmap, rename or fsync."""
    return "://" in os.fspath(path)


def names_a_place(name: str) -> bool:
    """True for a path that is there, or any in a store; a Hub id names none."""
    return is_remote(name) or as_place(name).exists()


def is_there(path: epath.Path) -> bool:
    """`path.exists()`, which says False of what a disk without an answer holds.

    Raises:
        OSError: the disk does not answer, or a folder above may not be read.
    """
    return path.exists() if is_remote(path) else _mode(path) is not None


def is_folder(path: epath.Path) -> bool:
    """`path.is_dir()`, with the errors of `is_there`."""
    return path.is_dir() if is_remote(path) else stat.S_ISDIR(_mode(path) or 0)


def is_gone(error: OSError) -> bool:
    """True if an error says that a file is not there; others say nothing of what lies on a disk."""
    kinds = FileNotFoundError | NotADirectoryError | IsADirectoryError
    return isinstance(error, kinds) or error.errno == errno.ELOOP


def _mode(path: epath.Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except ValueError:  # a zero byte in the name
        return None
    except OSError as error:
        if is_gone(error):
            return None
        raise


def as_place(path: AnyPath) -> epath.Path:
    """The absolute form of a path that a user gave: ~ is expanded, gs:// and s3:// stay as given.

    Raises:
        ConfigError: the kind of store is unknown, or the package for it is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return epath.Path(text).expanduser().absolute()
    scheme = text.partition("://")[0]
    if scheme not in _STORES:
        raise ConfigError(f"{text}: {scheme}:// is not known; name a directory, gs:// or s3://")
    package, extra = _STORES[scheme]
    if importlib.util.find_spec(package) is None or importlib.util.find_spec("etils") is None:
        raise ConfigError(
            f"{text}: {scheme}:// needs the package {package}, which is not installed; "
            f"pip install 'polaris_jax[{extra}]'"
        )
    _list_anew(scheme)
    return epath.Path(text)


def file_to_write(text: str, *, flag: str) -> epath.Path:
    """The place of a file that a user wants written.

    Raises:
        ConfigError: it is a directory or lies in none; or see `as_place`.
    """
    place = as_place(text)
    if place.is_dir():
        raise ConfigError(f"{flag}={text}: it is a directory; name a file in it")
    if not (is_remote(place) or place.parent.is_dir()):  # a store has no directories to make
        raise ConfigError(
            f"{flag}={text}: it lies in no directory that exists; name a file in one that does"
        )
    return place


def _list_anew(scheme: str) -> None:
    # fsspec caches listings for ever, but tensorstore and other processes write to the store too.
    from fsspec import config

    for protocol in ("gcs", "gs") if scheme == "gs" else (scheme,):
        config.conf.setdefault(protocol, {})["use_listings_cache"] = False


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes `data` to `path`, durably and in one step. The directory must exist.

    Raises:
        OSError: the disk is full or the path is not writable; the old content of `path` stays.
    """
    place = epath.Path(path)
    if is_remote(place):
        with store_errors(place):
            place.write_bytes(data)
        return
    # A name of its own: two processes that write one file at once leave one of the two contents.
    partial = place.with_name(f"{place.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        error.filename, error.filename2 = os.fspath(place), None  # what the user knows
        raise
    sync_directory(place.parent)


def move_file(source: AnyPath, path: AnyPath) -> None:
    """Puts a finished local file in the place of `path`, durably and in one step.

    Args:
        source: the file, on the disk of `path` unless that is in a store; it is gone afterwards.
        path: where it belongs. The directory must exist.

    Raises:
        OSError: the disk is full or the path is not writable; the old content of `path` stays.
    """
    place = epath.Path(path)
    if is_remote(place):
        with open(source, "rb") as file:
            write_bytes(place, file.read())
        os.unlink(source)
        return
    with open(source, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(source, place)
    sync_directory(place.parent)


def delete_partials(folder: epath.Path, names: Collection[str] | None = None) -> None:
    """Deletes the partial copies of files that a kill has left. For the files' owner alone.

    Args:
        folder: where they lie; in a store and in an absent folder there are none.
        names: names of the files; None: of every file in the folder.
    """
    if is_remote(folder):
        return
    for path in entries(folder):
        made = _PARTIAL_OF.fullmatch(path.name)
        if made and (names is None or made[1] in names):
            path.unlink(missing_ok=True)


def append_bytes(path: AnyPath, data: bytes, *, durable: bool = True) -> None:
    """Adds `data` to the end of a file. A missing file is created.

    A store cannot append: the old content and the new data are written as one put, so every call
    costs the file's size. Our files are a few MB.

    Args:
        path: path of the file.
        data: complete lines; on a disk a kill may tear them.
        durable: True: the data are on the disk when this returns.

    Raises:
        OSError: the disk is full or the path is not writable.
    """
    if is_remote(path):
        place = epath.Path(path)
        write_bytes(place, (place.read_bytes() if place.exists() else b"") + data)
        return
    # Of a pipe that nobody reads an open would wait for ever; without blocking it is an error.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    with open(os.open(path, flags, 0o666), "ab") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def write_json(path: AnyPath, value: Any, *, indent: int | None = 2) -> None:
    """Writes `value` to `path` as JSON with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: the value holds a NaN or an infinity, which JSON cannot express.
        TypeError: the value holds something that is not JSON.
        OSError: the disk is full or the path is not writable; the old content of `path` stays.
    """
    text = json.dumps(value, sort_keys=True, indent=indent, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def entries(directory: epath.Path) -> list[epath.Path]:
    """A directory's entries; none if it does not exist, as an empty one in a store does not."""
    return list(directory.iterdir()) if directory.is_dir() else []


def matching(directory: epath.Path, pattern: str) -> list[epath.Path]:
    """A directory's entries whose names match, sorted. A glob would also expand the path itself."""
    found = [path for path in entries(directory) if fnmatch.fnmatchcase(path.name, pattern)]
    return sorted(found, key=lambda path: path.name)


def files_below(directory: epath.Path, *, links: bool = True) -> Iterator[epath.Path]:
    """Every file in a directory and its subfolders; none if the directory does not exist.

    Args:
        directory: the directory.
        links: True follows a link to a folder, unless it leads back to a folder that holds it.
            False takes such a link for a file.
    """
    if not is_folder(directory):
        return
    for path in directory.iterdir():
        if is_folder(path) and (links or not os.path.islink(path)):
            if not (os.path.islink(path) and _holds(os.path.realpath(path), directory)):
                yield from files_below(path, links=links)
        else:
            yield path


def _holds(folder: str, directory: epath.Path) -> bool:
    return f"{os.path.realpath(directory)}/".startswith(f"{folder.rstrip('/')}/")


def delete(path: epath.Path) -> None:
    """Deletes a file, a link, or a folder and its content. An absent path is no error."""
    if path.is_dir() and not os.path.islink(path):
        path.rmtree(missing_ok=True)
    else:
        path.unlink(missing_ok=True)


def sync_directory(path: AnyPath) -> None:
    """Makes the names in a directory durable: a power cut can undo a rename that is not synced."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def store_errors(path: epath.Path, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns the errors of a store's client into an OSError that names the path.

    Args:
        path: what is read or written in the store.
        passing: errors that stay what they are, since ours are among them.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, first_line(error), str(path)) from error
    except passing:
        raise
    except Exception as error:  # aiohttp's, botocore's, gcsfs's own
        raise OSError(errno.EIO, first_line(error), str(path)) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the error's type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def cause_of(error: BaseException) -> tuple[str, int]:
    """One line that says what went wrong, and the system's error number (0: none)."""
    number = getattr(error, "errno", None) or 0
    if match := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's spelling
        number = int(match[1])
    if number:
        return os.strerror(number), number
    return first_line(error), 0
