"""``torchrun --nproc-per-node N -m revstep.lm.train --parallel ddp ...``: ``revstep train`` as a module that launchers can name.

An entry point alone. Imported, ``revstep.lm.train`` is the function of that name.
"""

import sys

if __name__ == "__main__":
    from ..cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

from .trainer import train

sys.modules[__name__] = train
