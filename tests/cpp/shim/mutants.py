"""Broken device kernels that the trials of the shim must notice, all compiled at once.

``mutants.py write SOURCES FOLDER`` writes the kernels into the folder, each change beside the original and
behind a number; ``mutants.py run PROGRAM`` runs the trials with none of the changes, with each of those that
are legal, and with each of the broken ones, which they must not survive.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PARTS, ONE, EIGHT = "cuda_parts.cuh", "cuda_elements.cuh", "cuda_eight.cuh"
FIXED, FLOATS = "step_fixed_cuda.cu", "step_float_cuda.cu"
SCALE, SAMPLE = "scale_cuda.cu", "sample_cuda.cu"

#: name: (file, text that stands there, what it becomes). A text that ends with a semicolon or a brace is a
#: statement, any other an expression.
BROKEN = {
    "indices of 32 bits": (
        ONE,
        "g * kEach + v",
        "static_cast<int64_t>(static_cast<uint32_t>(g * kEach + v))",
    ),
    "a checksum by indices of 32 bits": (
        FIXED,
        "checksum_outer(g * kEach)",
        "checksum_outer(static_cast<uint32_t>(g * kEach))",
    ),
    "turns that overlap": (
        PARTS,
        "static_cast<int64_t>(gridDim.x) * kThreads",
        "static_cast<int64_t>(gridDim.x) * kThreads - 128",
    ),
    "a step that counts one thing twice": (PARTS, "blockIdx.x == 0 ? 1u : 0u", "1u"),
    "statistics read before they are written": (PARTS, "__syncthreads();", ";"),
    "the last halving of a warp left out": (PARTS, "offset > 0", "offset > 1"),
    "bad elements of one lane": (PARTS, "bad += o.bad;", ";"),
    "the last bad element": (
        PARTS,
        "first_bad = o.first_bad < first_bad ? o.first_bad : first_bad;",
        "first_bad = o.first_bad > first_bad && o.first_bad != ~0ull ? o.first_bad : first_bad;",
    ),
    "an error left where the runtime keeps it": (PARTS, "cudaGetLastError();", ";"),
    "elements beyond the end": (ONE, "if (i >= s.n) break;", ";"),
    "the last group left out": (FIXED, "groups * kEach < s.n", "groups * kEach < s.n && s.carry_bits != 0"),
    "a last carry word that keeps what it had": (FIXED, "clear_rest(s, groups);", ";"),
    "a last carry word that keeps what it had, one by one": (ONE, "clear_rest(s, g + 1);", ";"),
    "carry planes the other way round": (ONE, "(8 * p)", "8 * (s.carry_bits - 1 - p)"),
    "carries of the next element": (FIXED, "carry_in(carries, v)", "carry_in(carries, (v + 1) % kEach)"),
    "carries of the next group": (ONE, "g % 4", "(g + 1) % 4"),
    "rows that end one element early": (
        ONE,
        "i / plan.args.row_length",
        "(i + 1) % plan.args.row_length == 0 ? 0 : i / plan.args.row_length",
    ),
    "rows by an estimate alone": (
        EIGHT,
        "row += (rest >= length ? 1 : 0) - (rest < 0 ? 1 : 0);",
        "row += length > 8;",
    ),
    "no look at values near the limit": (FIXED, "value_near<S>(scaled)", "false"),
    "no look at sums near the limit": (FIXED, "near | c.near", "near"),
    "no look at the most negative number": (
        FIXED,
        "here > static_cast<typename FixedTraits<S>::Bits>(FixedTraits<S>::limit)",
        "here > 2 * static_cast<typename FixedTraits<S>::Bits>(FixedTraits<S>::limit) + 1",
    ),
    "no look at values near the limit, one by one": (ONE, "!value_near<S>(v) && !fast.near", "!fast.near"),
    "no look at sums near the limit, one by one": (ONE, "prev_near<KA, KB>(source, cur, d, k)", "false"),
    "numbers that are not finite": (FLOATS, "here >= infinity", "here > infinity"),
    "weights of the next place": (
        EIGHT,
        "threadIdx.x % (kChecksumPeriod / kEach)",
        "(threadIdx.x + 1) % (kChecksumPeriod / kEach)",
    ),
    "words of 16 bytes where none are": (EIGHT, "aligned(s.out)", "true"),
    "a product rounded once": (SCALE, "static_cast<W>(real(product))", "static_cast<W>(real(g8.at[v]) * f)"),
    "a product rounded once, one by one": (
        SCALE,
        "rounded(g * static_cast<C>(factor), s.value_type)",
        "g * static_cast<C>(factor)",
    ),
    "multiples of the next row": (
        SCALE,
        "g * kEach / s.row_length",
        "(g * kEach + s.row_length) % s.n / s.row_length",
    ),
    "a fingerprint of one warp": (SAMPLE, "threadIdx.x % kWarp == 0", "threadIdx.x == 0"),
}
#: Other programs of the same result. Threads that have returned are waited for no more, on Volta and later,
#: and lanes of a warp may meet in calls at different places of the source.
LEGAL = {
    "some threads publish early and return": (
        FLOATS,
        "    Tally tally;\n    for (int64_t g = first_index(); g * kEach",
        "    Tally tally;\n"
        "    if (shim_mutant == NUMBER && first_index() * kEach >= plan.args.n)\n"
        "        return publish(tally, plan.args.stats);\n"
        "    for (int64_t g = first_index(); g * kEach",
    )
}
CHOSEN = """#include <cstdlib>
static const int shim_mutant = std::getenv("SHIM_MUTANT") ? std::atoi(std::getenv("SHIM_MUTANT")) : 0;
"""


def changed(text: str, old: str, new: str, number: int) -> str:
    if old not in text:
        raise SystemExit(f"no kernel has {old!r} any more: adapt the mutant")
    if "NUMBER" in new:
        return text.replace(old, new.replace("NUMBER", str(number)))
    if old[-1] in ";}":
        both = f"if (shim_mutant == {number}) {{ {new} }} else {{ {old} }}"
    else:
        both = f"(shim_mutant == {number} ? ({new}) : ({old}))"
    return text.replace(old, both)


def write(sources: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources.glob("*.cu*")}
    for number, (file, old, new) in enumerate([*BROKEN.values(), *LEGAL.values()], 1):
        texts[file] = changed(texts[file], old, new, number)
    texts[PARTS] = re.sub(r"(#include <cuda_runtime.h>\n)", r"\1" + CHOSEN, texts[PARTS])
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def survives(program: str, number: int) -> bool:
    done = subprocess.run(
        [program, "400", "1", "first"],
        env={**os.environ, "SHIM_MUTANT": str(number)},
        capture_output=True,
        text=True,
    )
    why = (done.stderr or done.stdout).strip().splitlines()
    print(f"{number:3d}  status {done.returncode}  {why[0] if why else ''}")
    return done.returncode == 0


def run(program: str) -> int:
    wrong = 0 if survives(program, 0) else 1
    for number, name in enumerate([*BROKEN, *LEGAL], 1):
        lives = survives(program, number)
        if lives != (name in LEGAL):
            print(f"     {name}: {'NOT noticed' if lives else 'refused although it is legal'}")
            wrong += 1
    print(f"{len(BROKEN)} broken kernels, {len(LEGAL)} legal, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(run(sys.argv[2]))
