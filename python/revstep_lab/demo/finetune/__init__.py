"""``revstep demo --hf``: a GPT-2 and a Llama from scratch to the deployed fine-tuned model, by way of the
reversible one.

For each family: train the transformers class on the Python standard library's sources and save it as a hub
would (``make``), convert it with every scheme and measure what that costs without retraining (``dial``),
fine-tune it on another text, plain and reversible, in full and with LoRA, and revert (``tune``). ``meter``
counts bytes, ``record`` makes rows and the verdict, ``plots`` draws, ``session`` does it in turn.
"""

from .session import Outcome, run
from .settings import Settings

__all__ = ["Outcome", "Settings", "run"]
