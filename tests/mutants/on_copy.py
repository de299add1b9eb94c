"""Run something against the package in another folder: ``on_copy.py FOLDER checks NAME...`` or ``on_copy.py
FOLDER verify ARGUMENT...``.

An installed revstep (also an editable one, whose finder would win over the path) is put out of the way first.
"""

import json
import runpy
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1]).resolve()
# Python's own finders are classes, added ones are instances.
sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
sys.path.insert(0, str(FOLDER))

import revstep  # noqa: E402

assert Path(revstep.__file__).parent.parent == FOLDER, f"{revstep.__file__} is not the copy in {FOLDER}"
assert Path(revstep.ops._kernels._C.__file__).parent.parent == FOLDER, "the extension is not the copy's"
if sys.argv[2] == "checks":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
    import kernel_battery

    print(json.dumps(kernel_battery.failures(sys.argv[3:])))
else:
    sys.argv = ["revstep", *sys.argv[2:]]
    runpy.run_module("revstep", run_name="__main__")
