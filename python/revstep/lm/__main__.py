"""``torchrun --nproc-per-node N -m revstep.lm --parallel ddp ...``: ``revstep train`` as a module that
launchers can name.
"""

import sys

from .._cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
