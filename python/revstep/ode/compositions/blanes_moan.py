"""Blanes and Moan's splittings of two flows: order 4 with 6 stages and order 6 with 10, chosen for a small error among a family of solutions.

The printed digits (15) lie on a curve (order 6) or a 3-dimensional family (order 4) of solutions. They were moved to its nearest point by Gauss-Newton
steps of least norm on the order conditions with 60 digits: by at most 6e-17 (order 4) and 2e-15 (order 6), and all conditions then hold to 1e-57.
"""

from .base import Splitting

PAPER = "Blanes and Moan, J. Comput. Appl. Math. 142 (2002) 313"

BLANES_MOAN4 = Splitting(
    "blanes_moan4", 4,
    (
        0.079203696431195674197649624,
        0.35317290604977403681866556,
        -0.042065080357719529215171581,
        0.21937695575349963639771280,
    ),
    (
        0.20951510661336205297244999,
        -0.14385177317981803796409630,
        0.43433666656645598499164631,
    ),
    f"{PAPER}, S6 of order 4",
)  # fmt: skip

BLANES_MOAN6 = Splitting(
    "blanes_moan6", 6,
    (
        0.050262764400392722764635017,
        0.41351430042834347745413672,
        0.045079889794398111489861084,
        -0.18805485381956861849042528,
        0.54196067845078001236689219,
        -0.72552555850869141117019945,
    ),
    (
        0.14881644790104328045733825,
        -0.13238586576778375614934697,
        0.067307604692184399240771486,
        0.43266640257817371163358331,
        -0.016404589403617635182346084,
    ),
    f"{PAPER}, S10 of order 6",
)  # fmt: skip
