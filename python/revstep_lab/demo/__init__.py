"""``revstep demo``: the plain stack and every reversible one, trained side by side on real text, then taken
apart and compared.

The text is the Python standard library's own sources on the machine it runs on. Nothing is downloaded.

    from revstep_lab.demo import Settings, run
    outcome = run(Settings(minutes=3.0, out="revstep-demo"))
    outcome.code                                                    # 0, or 1 when a state was not rebuilt

Order of work: ``settings`` says what, ``text`` prepares the bytes, ``race`` trains, ``examine`` looks at the
trained stacks, ``meter`` counts bytes, ``record`` makes rows, numbers and sentences of it, ``plots`` draws,
``session`` does all of it in turn.
"""

from .session import Outcome, run
from .settings import Settings

__all__ = ["Outcome", "Settings", "run"]
