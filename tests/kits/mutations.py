"""Seeded damage to texts, bytes and values, for tests of whatever reads files of users."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 2**63, 10**400, 1.5, float("inf"), float("nan"), "", "auto", "a" * 5000, "\x00", "${a}",
    "${run.name}", "\u2028", "../..", "/proc/nope", "embedded:nothing", "org/name/x", [], {}, [[]], [None], {"type": 1},
    {"": ""}, {"a": {"b": {"c": []}}}, ["a", 1, None], "1e5", "off", "~/x", "%s", "\ud7ff", "x.py:y", "é",
]  # fmt: skip
"""Values that somebody might put anywhere."""

SNIPPETS = [
    b"[", b"{", b"]", b"}", b'"', b"'", b":", b"- ", b"\n", b"\t", b"\x00", b"\xff\xfe", b"\xe9", b"&a ", b"*a",
    b"!!set ", b"!!python/name:os.system ", b"<<: ", b"${", b"9" * 5000, b"[" * 300, b"{a: " * 200, b"0x", b"1e999",
    b"NaN", b"---\n", b"%YAML 9.9\n", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b",", b",,", b"\r", b"|\n", b">\n",
    b"# ", b"\xc2\x85",
]  # fmt: skip


def mutated_bytes(data: bytes, random_: random.Random) -> bytes:
    """One to four of: a flipped byte, a cut, a doubled part, an odd snippet, a lost part."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(changed) + 1)
        end = min(len(changed), at + random_.randint(1, 40))
        match random_.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random_.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = changed[at:end]
            case 3 | 4:
                changed[at:at] = random_.choice(SNIPPETS)
            case _:
                del changed[at:end]
    return bytes(changed)


def mutated_value(value: Any, random_: random.Random) -> Any:
    """A copy with one to three values replaced, removed, added, renamed or nested deeply."""
    changed = copy.deepcopy(value)
    for _ in range(random_.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            return random_.choice(ODD)
        originals = [where[name] for where, name in places]
        holder, key = random_.choice(places)
        match random_.randrange(6):
            case 0 | 1:
                holder[key] = copy.deepcopy(random_.choice(ODD))
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[
                    random_.choice([f"{key}x", key[:-1] if isinstance(key, str) else "x", "type", "lr", "", "a.b"])
                ] = holder.pop(key)
            case 4:
                holder[key] = copy.deepcopy(random_.choice(originals))
            case _:
                for _ in range(random_.choice([1, 5, 60, 400])):
                    holder[key] = [holder[key]] if random_.random() < 0.5 else {"a": holder[key]}
    return changed


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from _places(part)
