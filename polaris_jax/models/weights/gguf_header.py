"""Checks a GGUF file's header before the `gguf` library reads it.

The library believes the counts and lengths that a file claims: it loops over them, recurses into
arrays of arrays, multiplies dimensions without a check for overflow, and makes a numpy array of
each entry of an array. This check walks over the header once, and reads lengths and types only.
"""

from __future__ import annotations

import math
import os
from typing import IO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from polaris_jax.system.foreign import DOWNLOAD, ForeignFileError, open_regular, printable, shown

MOST_FIELDS = 10_000
MOST_TENSORS = 100_000
MOST_NAME_BYTES = 1 << 10
MOST_ENTRIES = 4_000_000  # of all arrays together: tokens, scores, types and merges of a tokenizer
MOST_TEXT_BYTES = 1 << 28  # of all texts together
_MOST_AXES = 4
_VERSIONS = (2, 3)
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9


def check_gguf_header(path: os.PathLike[str]) -> None:
    """Checks every count, length, dimension and offset of a GGUF header against the file's size.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFileError: it is not a regular file, or not a complete little-endian GGUF file of
            version 2 or 3. The text says where the defect is.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            _Header(file, size).check()
        except ValueError as error:
            raise ForeignFileError(
                f"{shown(path)}: not a whole GGUF file ({error}); {DOWNLOAD}"
            ) from None


class _Header:
    """The header of one file, read from its start to its end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size, self._at = file, size, 0
        self._entries = self._text_bytes = 0

    def check(self) -> None:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := self._number(4)) not in _VERSIONS:
            raise ValueError(f"it has version {version}, expected 2 or 3, little-endian")
        tensors = self._count(8, MOST_TENSORS, "tensors")
        fields = self._count(8, MOST_FIELDS, "fields of metadata")
        alignment = 32
        for i in range(fields):
            name = self._name(f"field {i}")
            kind = self._number(4)
            if name == "general.alignment" and kind == 4:
                alignment = self._number(4)
            else:
                self._skip_value(kind, name)
        if not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment={alignment}: expected a power of 2")
        spans = [self._tensor(i) for i in range(tensors)]
        start = -(-self._at // alignment) * alignment
        for name, offset, length in spans:
            if start + offset + length > self._size:
                raise ValueError(f"tensor {name} ends after the file's {self._size} bytes")

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ValueError(f"its header ends after the file's {self._size} bytes")
        self._at += count
        return data

    def _skip(self, count: int) -> None:
        if count > self._size - self._at:
            raise ValueError(f"its header ends after the file's {self._size} bytes")
        self._at += count
        self._file.seek(self._at)

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _count(self, size: int, most: int, what: str) -> int:
        count = self._number(size)
        if count > most:
            raise ValueError(f"it claims {count} {what}, more than {most}")
        return count

    def _name(self, what: str) -> str:
        data = self._take(self._count(8, MOST_NAME_BYTES, f"bytes in the name of {what}"))
        return printable(data.decode(errors="backslashreplace"))

    def _skip_text(self, name: str) -> None:
        length = self._number(8)
        self._text_bytes += length
        if self._text_bytes > MOST_TEXT_BYTES:
            raise ValueError(f"{name}: its texts have more than {MOST_TEXT_BYTES} bytes")
        self._skip(length)

    def _skip_value(self, kind: int, name: str) -> None:
        if kind in _SCALAR_BYTES:
            self._skip(_SCALAR_BYTES[kind])
        elif kind == _TEXT:
            self._skip_text(name)
        elif kind == _ARRAY:
            kind, count = self._number(4), self._number(8)
            self._entries += count
            if self._entries > MOST_ENTRIES:
                raise ValueError(f"{name}: its arrays have more than {MOST_ENTRIES} entries")
            if kind in _SCALAR_BYTES:
                self._skip(count * _SCALAR_BYTES[kind])
            elif kind == _TEXT:
                for _ in range(count):
                    self._skip_text(name)
            else:
                raise ValueError(f"{name}: an array of type {kind}, expected texts or numbers")
        else:
            raise ValueError(f"{name}: type {kind} is not known")

    def _tensor(self, number: int) -> tuple[str, int, int]:
        """Name, offset and length in bytes of a tensor, which must be possible."""
        name = self._name(f"tensor {number}")
        axes = self._count(4, _MOST_AXES, f"axes of tensor {name}")
        shape = [self._number(8) for _ in range(axes)]
        kind, offset = self._number(4), self._number(8)
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise ValueError(f"tensor {name}: type {kind} is not known") from None
        if shape and shape[0] % block:
            raise ValueError(f"tensor {name}: rows of {shape[0]} are no blocks of {block}")
        return name, offset, math.prod(shape) // block * block_bytes
