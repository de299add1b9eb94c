"""Ways to damage a tree of files: each takes a path and a generator and says in words what it did."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

#: What no count, size or share can be.
WILD: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 2**31, 2**32, 2**40, 2**63, 2**64, 10**10, 10**21, 10**400, -(2**63), 0.5, -0.0, 1e308,
    1e-300,
    float("nan"), float("inf"), True, False, None, "", "nan", "é", "\udc80", "a" * 5000, [], {}, [[]], [None],
    {"a": 1}, "../../x", "/dev/null",
)  # fmt: skip


def bit(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return nothing(path, rng)
    at, which = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << which
    path.write_bytes(data)
    return f"bit {which} of byte {at} flipped"


def cut(path: Path, rng: Random) -> str:
    data = path.read_bytes()
    left = rng.randrange(len(data) + 1)
    path.write_bytes(data[:left])
    return f"cut to {left} bytes"


def longer(path: Path, rng: Random) -> str:
    more = rng.randbytes(rng.choice((1, 7, 4096)))
    path.write_bytes(path.read_bytes() + more)
    return f"{len(more)} bytes longer"


def nothing(path: Path, rng: Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def noise(path: Path, rng: Random) -> str:
    path.write_bytes(rng.randbytes(rng.choice((1, 8, 9, 100, 5000))))
    return "replaced by noise"


def text(path: Path, rng: Random) -> str:
    words = rng.choice(
        (
            "{}",
            "[]",
            "null",
            "0",
            '"x"',
            "{",
            "[" * 100_000,
            "NaN",
            "é",
            "1" * 5000,
            '{"a": 1, "a": 2}',
            "\ufeff{}",
        )
    )
    path.write_text(words, encoding="utf-8")
    return f"replaced by {words[:20]!r}"


def gone(path: Path, rng: Random) -> str:
    path.unlink()
    return "removed"


def folder(path: Path, rng: Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder now"


def fifo(path: Path, rng: Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe now"


def dangling(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to("nowhere")
    return "a link to nothing now"


def endless(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero now"


def loop(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself now"


def value(path: Path, rng: Random) -> str:
    """A value of a JSON file is another one, or of another kind, or not there."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return bit(path, rng)
    places = list(_places(data))
    if not places:
        return text(path, rng)
    keys = rng.choice(places)
    holder = data
    for key in keys[:-1]:
        holder = holder[key]
    name = "/".join(map(str, keys))
    if rng.random() < 0.2:
        del holder[keys[-1]]
        said = f"without {name}"
    else:
        holder[keys[-1]] = new = rng.choice(WILD)
        said = f"{name} is {repr(new)[:40]}"
    path.write_text(json.dumps(data), encoding="utf-8")
    return said


def _places(data: Any, at: tuple = ()) -> Any:
    if isinstance(data, dict):
        inner = list(data.items())
    elif isinstance(data, list):
        inner = list(enumerate(data[:8]))
    else:
        return
    for key, one in inner:
        yield (*at, key)
        yield from _places(one, (*at, key))


def header(path: Path, rng: Random) -> str:
    """A safetensors file whose header lies."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        return bit(path, rng)
    if rng.random() < 0.3:
        lie = rng.choice((0, 1, size - 1, size + 1, 2**32, 2**63 - 1, 2**64 - 1))
        path.write_bytes(lie.to_bytes(8, "little") + data[8:])
        return f"header of {lie} bytes instead of {size}"
    inside = path.with_name("header.json")
    inside.write_bytes(data[8 : 8 + size])
    said = value(inside, rng)
    head = inside.read_bytes()
    inside.unlink()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
    return f"header: {said}"


ANY: tuple[Callable[[Path, Random], str], ...] = (
    bit, bit, bit, bit, cut, cut, longer, nothing, noise, text, gone, folder, fifo, dangling, endless, loop,
)  # fmt: skip


def damage(path: Path, rng: Random) -> str:
    """Damage one file in a way that fits it."""
    ways: list[Callable[[Path, Random], str]] = list(ANY)
    if path.suffix in (".json", ".jsonl"):
        ways += [value] * 16 + [text] * 2
    if path.suffix == ".safetensors":
        ways += [header] * 12
    return rng.choice(ways)(path, rng)
