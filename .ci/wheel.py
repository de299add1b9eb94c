"""Looks into a repaired wheel: what it bundles, what its extension links. Needs pyelftools, which auditwheel
brings.

Usage: python .ci/wheel.py WHEEL
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

#: What every Linux has that the platform tag names. No OpenMP runtime, CUDA or torch library.
SYSTEM = {
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}


def needed(data: bytes) -> set[str]:
    """Libraries an ELF file links."""
    dynamic = ELFFile(io.BytesIO(data)).get_section_by_name(".dynamic")
    return {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}


def complaints(wheel: Path) -> list[str]:
    """What is wrong with it, as sentences."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in Path(name).name]
        found = [f"bundles {name}" for name in libraries if not name.startswith("revstep/_C.")]
        if not any(name.startswith("revstep/_C.") for name in libraries):
            found.append("has no extension revstep/_C")
        for name in libraries:
            foreign = sorted(needed(archive.read(name)) - SYSTEM)
            found += [f"{name} links {library}" for library in foreign]
    if "manylinux" not in wheel.name and "musllinux" not in wheel.name:
        found.append("has no manylinux tag")
    return found


if __name__ == "__main__":
    problems = complaints(Path(sys.argv[1]))
    print(
        f"{Path(sys.argv[1]).name}:"
        f" {'; '.join(problems) or 'bundles nothing, links only what the platform tag allows'}"
    )
    sys.exit(1 if problems else 0)
