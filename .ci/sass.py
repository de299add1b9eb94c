"""What the compiler made of the device kernels, by counting: ``sass.py FILE...``, with cuobjdump and nvdisasm
on the PATH. Files are objects that nvcc made of csrc/kernels/*.cu, or the extension; of several architectures
sm_90 is looked at.

Fails where a step of fixed-point states has a fused multiply-add, which would give other bits than the CPU's,
where a kernel of 8 elements a turn keeps registers in memory, or where its turn has more instructions an
element, or fewer bytes on their way, than promised below. What few groups need stands out of line: it is not
counted, and it may use memory.
"""

import re
import subprocess
import sys
from collections import defaultdict

EACH = 8  # elements a thread and turn
#: Instructions an element and turn, at most: of int32 states with alpha = +-1 and beta = 0; of the same in
#: float16, whose conversions are written out; and of any.
MOST_UNIT, MOST_HALF, MOST = 45, 60, 140
#: Bytes that a processor has on their way, at least: 4.8 TB/s times 0.6 microseconds by 132 processors.
LEAST_BYTES = 22000
REGISTERS, THREADS, BLOCK = 65536, 2048, 256

FUSED = re.compile(r"^(?:@!?U?P\d+ )?(FFMA|DFMA|HFMA2)\b")
WORD = re.compile(r"\.(128|64|U8|S8|U16|S16)\b")


def functions(path: str) -> dict[str, list[tuple[int, str]]]:
    """Name and architecture to (address, instruction) in order."""
    text = subprocess.run(
        ["cuobjdump", "-arch", "sm_90", "-sass", path], capture_output=True, text=True, check=True
    ).stdout
    found, arch, here = {}, "", []
    for line in text.splitlines():
        if match := re.match(r"\s*arch = (\S+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            here = found.setdefault(f"{arch} {match[1]}", [])
        elif match := re.match(r"\s*/\*([0-9a-f]{4,6})\*/\s+(.*?);", line):
            here.append((int(match[1], 16), match[2].strip()))
    return found


def registers(path: str) -> dict[str, int]:
    done = subprocess.run(
        ["cuobjdump", "-arch", "sm_90", "-res-usage", path], capture_output=True, text=True, check=True
    )
    pairs = re.findall(r"Function (\S+):\s*\n?\s*REG:(\d+)", done.stdout)
    return {name: max(int(n) for other, n in pairs if other == name) for name, _ in pairs}


def turn(code: list[tuple[int, str]]) -> list[str]:
    """The loop with the first 16-byte loads in it: what a thread does for 8 elements.

    The branch back is the first after these loads that goes to an address before them.
    """
    loads = [a for a, i in code if "LDG" in i and ".128" in i and "CONSTANT" not in i]
    for at, instruction in code:
        back = re.search(r"\bBRA(?:\.\w+)* (?:`\S+ )?(?:P\d+, |!P\d+, )?0x([0-9a-f]+)", instruction)
        if loads and back and at > loads[0] and int(back[1], 16) <= loads[0]:
            return [i for a, i in code if int(back[1], 16) <= a <= at]
    return []


def loaded(loop: list[str]) -> int:
    """Bytes that a thread asks for before it waits for the first of them."""
    size = 0
    for instruction in loop:
        if re.search(r"\bLDG", instruction):
            match = WORD.search(instruction)
            size += {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}[match[1]] if match else 4
        if re.search(r"\b(STG|CALL)", instruction):
            break
    return size


def main(paths: list[str]) -> int:
    wrong, rows = [], defaultdict(list)
    for path in paths:
        used = registers(path)
        for name, code in functions(path).items():
            kernel = name.split()[-1]
            fixed = "step_eight" in kernel and re.search(r"step_eightI[il]", kernel)
            body = turn(code)
            if fixed and (
                fused := [i for i in body if FUSED.match(i) and not re.search(r"RZ, RZ|, 1, 1", i)]
            ):
                wrong.append(f"{name}: {fused[0]}")
            if "step_eight" not in kernel:
                continue
            if not body:
                wrong.append(f"{name}: no turn was found")
                continue
            if memory := [i for i in body if re.search(r"\b(STL|LDL)\b", i)]:
                wrong.append(f"{name}: {len(memory)} accesses to spilled registers, {memory[0]}")
            each = len(body) / EACH
            resident = min(THREADS, REGISTERS // (-(-used[kernel] // 8) * 8) // BLOCK * BLOCK)
            flight = resident * loaded(body)
            unit = re.search(r"step_eightIi.*KindsE0ELb", kernel)
            half = "3F16" in kernel
            if each > (MOST if not unit else MOST_HALF if half else MOST_UNIT):
                wrong.append(f"{name}: {each:.1f} instructions an element")
            if flight < LEAST_BYTES:
                wrong.append(f"{name}: {flight} bytes on their way")
            kind = "others" if not unit else f"int32, alpha = +-1, beta = 0{', float16' if half else ''}"
            kind += ", bfloat16 in and out" if unit and "4Bf16" in kernel else ""
            rows[kind].append((each, flight, used[kernel]))
    for kind, found in rows.items():
        each, flight, used = ([r[k] for r in found] for k in range(3))
        print(f"{kind}: {len(found)} kernels")
        print(f"  {min(each):.1f} to {max(each):.1f} instructions an element")
        print(f"  {min(flight)} to {max(flight)} bytes on their way a processor")
        print(f"  {min(used)} to {max(used)} registers")
    print("\n".join(wrong) or "no fused multiply-add in a turn of the exact kernels, no spills")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
