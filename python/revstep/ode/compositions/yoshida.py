"""Yoshida's compositions of orders 4, 6 and 8.

The printed digits of orders 6 and 8 (15 after the point) were refined by Newton's method on the order conditions with 60 digits; all conditions then hold
to 1e-46, and every coefficient stays within 3e-13 of the printed one. Order 4 has the closed form 1 / (2 - 2^(1/3)).
"""

from .base import Composition

PAPER = "Yoshida, Phys. Lett. A 150 (1990) 262"

YOSHIDA4 = Composition("yoshida4", 4, (1.351207191959657634047688, -1.702414383919315268095376), f"{PAPER}, triple jump; Creutz and Gocksch (1989)")

YOSHIDA6 = Composition(
    "yoshida6", 6,
    (
        0.78451361047755726381949763,
        0.23557321335935813368479318,
        -1.1776799841788710069464157,
        1.3151863206839112188842497,
    ),
    f"{PAPER}, Table 1, solution A",
)  # fmt: skip

YOSHIDA8 = Composition(
    "yoshida8", 8,
    (
        0.91484424622979156674879349,
        0.25369333656621135414614602,
        -1.4448522368606051576947307,
        -0.15824063536805017520406678,
        1.9381391376225259865791865,
        -1.9606102329753108076076334,
        0.10279984939179644069811513,
        1.7084530707872815846683794,
    ),
    f"{PAPER}, Table 2, solution D",
)  # fmt: skip
