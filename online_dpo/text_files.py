"""Text from people: which encoding a file has that is not UTF-8, and texts and paths that no file system takes."""

from __future__ import annotations

import codecs
from pathlib import Path

MAX_PATH_BYTES, MAX_NAME_BYTES = 4095, 255  # of Linux

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def foreign_encoding(start: bytes) -> str | None:
    """What a file is whose first bytes cannot be UTF-8 text of ours: a sentence's end, with the remedy; None for UTF-8.

    Only what the first bytes tell for certain: byte order marks, and the zero bytes of UTF-16 without one.
    """
    name = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if name is None and len(start) >= 4:
        # Text of the Latin alphabet in UTF-16 has a zero in every second byte; UTF-8 text has none.
        even, odd = start[0:64:2], start[1:64:2]
        name = "UTF-16LE" if _is_text(even) and not any(odd) else None
        name = "UTF-16BE" if _is_text(odd) and not any(even) else name
    return None if name is None else f"is {name} text; {_convert(name)}"


def not_utf8(error: UnicodeDecodeError) -> str:
    """What bytes are that are not UTF-8: a sentence's end, with the remedy.

    Every byte is some character in Latin-1, so this is a likely reading and not a certain one.
    """
    byte = error.object[error.start]
    name, what = ("WINDOWS-1252", "Windows-1252") if 0x80 <= byte < 0xA0 else ("LATIN1", "Latin-1")
    character = bytes([byte]).decode("cp1252", errors="replace")
    return f"is not UTF-8; byte 0x{byte:02x} would be {character!r} in {what}: if that is right, {_convert(name)}"


def unusable_path(path: str | Path) -> str | None:
    """Why no file can have this path, as a sentence's end; None where one could."""
    text = str(path)
    if "\0" in text:
        return "contains a NUL character, which no path has"
    encoded = text.encode("utf-8", errors="surrogateescape")
    if len(encoded) > MAX_PATH_BYTES:
        return f"has {len(encoded)} bytes, and a path has at most {MAX_PATH_BYTES}"
    longest = max(len(name) for name in encoded.split(b"/"))
    if longest > MAX_NAME_BYTES:
        return f"has a name of {longest} bytes, and a file's name has at most {MAX_NAME_BYTES}"
    return None


def printable(text: object) -> str:
    """Text on one line, in which nothing moves a cursor, changes a colour or the direction of writing."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def shown(text: object) -> str:
    """A value in a message: on one line, and not longer than a glance."""
    line = printable(text)
    return line if len(line) <= 100 else f"{line[:60]}...{line[-30:]}"


def _is_text(data: bytes) -> bool:
    return bool(data) and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in data)


def _convert(name: str) -> str:
    return f"convert it: iconv -f {name} -t UTF-8 FILE > NEW_FILE"
