"""Kahan and Li's compositions of order 6 with 9 stages (the one of JANUS) and of order 8 with 17: more stages than needed, for a smaller error.

The printed digits (26 after the point) are reproduced by Newton's method on the order conditions with 60 digits.
"""

from .base import Composition

PAPER = "Kahan and Li, Math. Comp. 66 (1997) 1089"

KAHAN_LI6 = Composition(
    "kahan_li6", 6,
    (
        0.39216144400731413927925056,
        0.33259913678935943859974864,
        -0.70624617255763935980996482,
        0.082213596293550800231490448,
        0.79854399093482996339895035,
    ),
    f"{PAPER}, s9odr6a",
)  # fmt: skip

KAHAN_LI8 = Composition(
    "kahan_li8", 8,
    (
        0.13020248308889008087881763,
        0.56116298177510838456196441,
        -0.38947496264484728640807860,
        0.15884190655515560089621075,
        -0.39590389413323757733623154,
        0.18453964097831570709183254,
        0.25837438768632204729397911,
        0.29501172360931029887096624,
        -0.60550853383003451169892108,
    ),
    f"{PAPER}, s17odr8a",
)  # fmt: skip
