"""Hostile calls of the extension: arguments of any type and size, apart from addresses that are no memory.

    python tests/fuzz/fuzz_bindings.py --seconds 600 --seed 3   random calls
    python tests/fuzz/fuzz_bindings.py --seed 3 --case 17       one of them again, with what it said
    python tests/fuzz/fuzz_bindings.py --atheris [options]      the same calls, chosen by atheris (libFuzzer)

A call returns or raises. It never ends the process, and never writes outside the arrays that it was given.
What an address that is not null points to, no call can know: these are arrays of ours, with guards around
them, and no call says that they are longer than they are. Exit code 1 where something else happened.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # noqa: F401  (the extension takes its OpenMP runtime)

from revstep import _C

N = 64  # elements of every array, with the same number of guards on each side
GUARD = 0xA5
CODES = tuple(_C.dtypes().values())
INTEGERS = (
    0, 1, -1, 2, 7, 31, 32, 33, 63, 64, 255, 256,
    -(2**31), 2**31 - 1, 2**31, -(2**63), 2**63 - 1, 2**63, 2**64, 10**40,
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-8, 2.0**-9, 3.0, -4.0, 1e300, float("inf"), float("nan"), 5e-324)
OTHERS = (None, "", "a word", b"", [], ["a word"], {}, (), 1.5, object, ..., 1j)
REFUSED = (TypeError, ValueError, RuntimeError, OverflowError)


class Arrays:
    """Arrays of ``N`` eight-byte words, each between guards."""

    def __init__(self) -> None:
        self._bytes = np.full((12, 3, 8 * N), GUARD, np.uint8)
        self._bytes[:, 1] = 0

    def address(self, which: int) -> int:
        return self._bytes[which, 1].ctypes.data

    def __iter__(self):
        return (self.address(k) for k in range(len(self._bytes)))

    def intact(self) -> bool:
        return bool((self._bytes[:, ::2] == GUARD).all())


class FromBytes(random.Random):
    """Choices out of a fuzzer's bytes; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data

    def getrandbits(self, k: int) -> int:
        count = (k + 7) // 8
        taken, self._data = self._data[:count], self._data[count:]
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / 65536


def integer(rng: random.Random) -> int:
    return rng.choice(INTEGERS) if rng.random() < 0.5 else rng.randrange(-300, 300)


def size(rng: random.Random) -> int:
    """Never more than there is, unless it is more than any memory has."""
    n = integer(rng)
    return n if n <= N or n >= 2**48 else n % (N + 1)


def number(rng: random.Random) -> float:
    return rng.choice(FLOATS) if rng.random() < 0.7 else rng.randrange(-(2**25), 2**25) / 2**24


def several(make: Callable[[random.Random], Any]) -> Callable[[random.Random], Any]:
    return lambda rng: [make(rng) for _ in range(rng.randrange(6))]


class Call:
    """One call, argument by argument: what is meant, or something of the same kind, or something else."""

    def __init__(self, rng: random.Random, arrays: Arrays) -> None:
        self.rng, self.arrays, self.said = rng, arrays, ""

    def word(self, good: Any, make: Callable[[random.Random], Any] | None) -> Any:
        draw = self.rng.random()
        if draw < 0.015:
            return self.rng.choice(OTHERS)
        return make(self.rng) if make is not None and draw < 0.08 else good

    def address(self, which: int) -> Any:
        return self.word(self.arrays.address(which), lambda rng: rng.choice((0, -1, 2**64, 2**70)))

    def code(self) -> Any:
        return self.word(self.rng.choice(CODES), integer)

    def n(self) -> Any:
        return self.word(self.rng.choice((0, 1, 31, 32, 33, N)), size)

    def small(self, most: int) -> Any:
        return self.word(self.rng.randrange(most + 1), integer)

    def real(self) -> Any:
        return self.word(self.rng.choice((1.0, 0.5, -0.25, 1.5)), number)

    def threads(self) -> Any:
        return self.word(1, lambda rng: rng.choice((-5, 0, 2, 3, 2**31 - 1, 2**31)))

    def isa(self) -> Any:
        return self.word(-1, lambda rng: rng.choice((-2, 0, 1, 2, 3, 99)))

    # ---- what is called ----

    def coefficients(self) -> dict[str, Any]:
        return {name: self.real() for name in ("alpha", "beta", "gamma")}

    def types(self, *names: str) -> dict[str, Any]:
        return {name: self.code() for name in names}

    def kernel(self) -> None:
        kind = self.rng.choice(("step", "inverse", "encode", "decode", "differs", "checksum", "scale"))
        at = self.address
        if kind in ("step", "inverse"):
            args = _C.StepArgs(
                n=self.n(), source=at(0), cur=at(1), value=at(2), out=at(3), view=at(4),
                carry=at(5), stats=at(6),
                **self.types("state", "value_type", "view_type"), **self.coefficients(),
                frac_bits=self.small(24), carry_bits=self.small(8),
            )  # fmt: skip
            if self.rng.random() < 0.3:
                rows = _C.Rows(choice=at(7), length=self.small(16))
                args.by_row(rows=self.word(rows, None), **self.coefficients())
        elif kind == "encode":
            args = _C.EncodeArgs(
                n=self.n(), x=at(0), out=at(3), view=at(4), stats=at(6), frac_bits=self.small(24),
                **self.types("value_type", "state", "view_type"),
            )  # fmt: skip
        elif kind in ("decode", "differs"):
            args = _C.DecodeArgs(
                n=self.n(),
                state_data=at(0),
                view=at(4),
                frac_bits=self.small(24),
                **self.types("state", "view_type"),
            )
        elif kind == "checksum":
            args = _C.ChecksumArgs(n=self.n(), data=at(0), stats=at(6), **self.types("state"))
        else:
            out, factors = self.outputs()
            args = _C.ScaleArgs(
                n=self.n(), g=at(0), out=out, factors=factors, **self.types("value_type", "last_type")
            )
        getattr(_C, kind)(self.word(args, None), self.threads(), self.isa())

    def outputs(self) -> tuple[Any, Any]:
        count = self.rng.randrange(1, 4)
        out = [self.address(3 + k) for k in range(count)]
        return self.word(out, None), self.word([self.real() for _ in out], several(number))

    def by_position(self) -> None:
        kind = _C.Kind(frac_bits=self.small(24), **self.types("state", "value_type", "view_type"))
        name = self.rng.choice(("step", "inverse", "step_rows", "inverse_rows", "encode", "decode", "scale"))
        at = self.address
        if name in ("encode", "decode"):
            rest = (at(0), at(3), at(4), at(6)) if name == "encode" else (at(0), at(4))
            getattr(_C, f"{name}_of")(self.word(kind, None), self.n(), *rest, self.threads())
        elif name == "scale":
            rows = (at(7), self.rows()) if self.rng.random() < 0.5 else (0, 0)
            second = self.word([0.5] * 3, several(number))
            _C.scale_of(kind, self.n(), at(0), *self.outputs(), self.threads(), *rows, second)
        else:
            arrays = [at(k) for k in range(7)]
            given = (self.n(), *arrays, *self.coefficients().values(), self.small(8), self.threads())
            if name.endswith("_rows"):
                rows = (at(7), self.rows(), *self.coefficients().values())
                getattr(_C, name.removesuffix("_rows") + "_by_row")(kind, *given, *rows)
            else:
                getattr(_C, f"{name}_of")(self.word(kind, None), *given)

    def rows(self) -> Any:
        return self.word(
            self.rng.choice((1, 2, 4, 8)), lambda rng: rng.choice((-1, 0, 3, 64, -(2**63), 2**64))
        )

    def fingerprint(self) -> None:
        """Sizes and strides of which all or nothing is memory: what lies between is the caller's to know."""
        sizes, strides = self.rng.choice((([2, 4], [4, 1]), ([8], [1]), ([], []), ([3, 1, 2], [2, 9, 1])))
        lies = several(lambda rng: rng.choice((-1, 2**62, 2**63, 0)))
        _C.sample(
            data=self.address(0), width=self.word(self.rng.choice((1, 2, 4, 8, 16)), integer),
            size=self.word(sizes, lies), stride=self.word(strides, lies), every=self.word(1, integer),
            seed=self.small(9),
        )  # fmt: skip

    def integration(self) -> None:
        run, at = _C.OdeRun(), self.address
        micros = [
            _C.OdeMicro(
                slot=self.small(1), function=self.word(0, integer), rk_sign=self.word(0, integer),
                alpha=self.real(), beta=self.word(0.0, number), gamma=self.real(), tau=self.real(),
            )
            for _ in range(self.rng.randrange(4))
        ]  # fmt: skip
        run.program(self.word(micros, None), self.word([len(micros)], several(integer)))
        run.field(
            self.word(self.rng.choice((1, 2, 3, 4, 5, 7, 8)), integer), self.word([1.0], several(number))
        )
        if self.rng.random() < 0.2:
            run.tableau(several(number)(self.rng), several(number)(self.rng), several(number)(self.rng))
        units = _UNITS.ctypes.data
        words = dict(
            batch=self.word(2, lambda rng: rng.choice((-1, 0, 1, 2, 2**62, 2**64))),
            dim=self.word(2, lambda rng: rng.choice((-1, 0, 1, 2, 3, 2**31, 2**62))), slots=(at(0), at(1)),
            fixed=self.rng.random() < 0.6, each=self.rng.random() < 0.2,
            frac_bits=self.word((units, units), None),
            steps=self.word(3, lambda rng: rng.choice((-1, 0, 7, 2**62, 2**64))),
            position=self.small(9), undo=self.rng.random() < 0.3, t0=self.real(), h=self.real(),
            lo=self.word(-9.0, number), hi=self.word(9.0, number),
            save_every=self.word(0, lambda rng: rng.choice((-1, 1, 2, 9, 2**64))),
            until_save=self.small(3), save=(at(2), at(3)), carry=at(4), carry_stride=self.word(64, size),
            carry_at=self.word(0, integer), threads=self.threads(), lanes=self.word(0, integer),
            isa=self.isa(), zero=(at(5), at(6)), high=(at(7), at(8)), apart=at(9), apart_at=at(10),
            bad=self.word(0, lambda rng: at(11)),
        )  # fmt: skip
        for name, value in words.items():
            if self.rng.random() < 0.9 or name in ("batch", "dim", "slots", "frac_bits", "carry_stride"):
                setattr(run, name, value)
        run()

    def make(self) -> None:
        self.rng.choice((self.kernel, self.by_position, self.fingerprint, self.integration))()


#: Units of every component of an integration: addresses to them cannot lie about their number.
_UNITS = np.full(4 * N, 20, np.int32)


def call(rng: random.Random) -> str:
    """Make one call; what came of it. Raises what no call may raise."""
    arrays = Arrays()
    try:
        Call(rng, arrays).make()
        said = "returned"
    except REFUSED as refusal:
        said = f"{type(refusal).__name__}: {refusal}"
    if not arrays.intact():
        raise AssertionError("a guard was written over")
    return said


def batch(seed: int, first: int, count: int) -> int | None:
    """Calls in a forked child; the number of the one that ended it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for k in range(first, first + count):
                os.write(send, k.to_bytes(8, "little"))
                call(random.Random(f"{seed}:{k}"))
            status = 0
        except BaseException as error:  # a child that goes on would be a second fuzz
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    os.close(send)
    reached = first
    while word := os.read(receive, 8):
        reached = int.from_bytes(word, "little")
    os.close(receive)
    return reached if os.waitpid(child, 0)[1] != 0 else None


def fuzz(seed: int, seconds: float, most: int = 10**9, each: int = 500) -> tuple[int, list[int]]:
    """How many calls were made, and the numbers of those that must not end as they did."""
    begin, done, failures = time.monotonic(), 0, []
    while done < most and time.monotonic() - begin < seconds and len(failures) < 10:
        failed = batch(seed, done, min(each, most - done))
        if failed is None:
            done = min(done + each, most)
        else:
            failures.append(failed)
            done = failed + 1
    return done, failures


def with_atheris(arguments: list[str]) -> None:
    import atheris

    atheris.Setup([sys.argv[0], *arguments], lambda data: call(FromBytes(data)) and None)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--atheris"]:
        with_atheris(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int)
    options = parser.parse_args()
    if options.case is not None:
        print(call(random.Random(f"{options.seed}:{options.case}")))
        return 0
    done, failures = fuzz(options.seed, options.seconds)
    for failure in failures:
        print(f"--seed {options.seed} --case {failure}")
    print(f"{done} calls of the extension, {len(failures)} of which ended as none may")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
