"""Published compositions and splittings of orders 2 to 8 as data, family by family: Strang and Verlet,
Suzuki, Yoshida, Kahan and Li, Blanes and Moan.
"""

from __future__ import annotations

from ._base import Composition, Splitting

# ------------------------------------------------------------------------------------------------------------
# Strang splitting itself, A/2 B A/2: the Stormer-Verlet scheme of second-order and of separable equations.

VERLET = Composition(
    "verlet", 2, (1.0,), "Strang, SIAM J. Numer. Anal. 5 (1968); Verlet, Phys. Rev. 159 (1967)"
)


# ---- Suzuki's fivefold composition of order 4, and the one of order 8 by Suzuki and Umeno ----
#
# Order 4 has the closed form 1 / (4 - 4^(1/3)). The printed digits of order 8 (26 after the point) are
# reproduced by Newton's method on the order conditions with 60 digits.

SUZUKI4 = Composition(
    "suzuki4",
    4,
    (0.4144907717943757371423541, 0.4144907717943757371423541, -0.6579630871775029485694163),
    "Suzuki, Phys. Lett. A 146 (1990) 319",
)

SUZUKI_UMENO8 = Composition(
    "suzuki_umeno8",
    8,
    (
        0.74167036435061295344822780,
        -0.40910082580003159399730010,
        0.19075471029623837995387626,
        -0.57386247111608226665638773,
        0.29906418130365592384446354,
        0.33462491824529818378495798,
        0.31529309239676659663205666,
        -0.79688793935291635401978884,
    ),
    "Suzuki and Umeno, in Computer Simulation Studies in Condensed-Matter Physics VI (1993), as printed in"
    " Hairer, Lubich, Wanner, section V.3.2",
)


# ---- Yoshida's compositions of orders 4, 6 and 8 ----
#
# The printed digits of orders 6 and 8 (15 after the point) were refined by Newton's method on the order
# conditions with 60 digits; all conditions then hold to 1e-46, and every coefficient stays within 3e-13 of
# the printed one. Order 4 has the closed form 1 / (2 - 2^(1/3)).

YOSHIDA = "Yoshida, Phys. Lett. A 150 (1990) 262"

YOSHIDA4 = Composition(
    "yoshida4",
    4,
    (1.351207191959657634047688, -1.702414383919315268095376),
    f"{YOSHIDA}, triple jump; Creutz and Gocksch (1989)",
)

YOSHIDA6 = Composition(
    "yoshida6", 6,
    (
        0.78451361047755726381949763,
        0.23557321335935813368479318,
        -1.1776799841788710069464157,
        1.3151863206839112188842497,
    ),
    f"{YOSHIDA}, Table 1, solution A",
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
    f"{YOSHIDA}, Table 2, solution D",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# Kahan and Li's compositions of order 6 with 9 stages (the one of JANUS) and of order 8 with 17: more stages
# than needed, for a smaller error.
#
# The printed digits (26 after the point) are reproduced by Newton's method on the order conditions with 60
# digits.

KAHAN_LI = "Kahan and Li, Math. Comp. 66 (1997) 1089"

KAHAN_LI6 = Composition(
    "kahan_li6", 6,
    (
        0.39216144400731413927925056,
        0.33259913678935943859974864,
        -0.70624617255763935980996482,
        0.082213596293550800231490448,
        0.79854399093482996339895035,
    ),
    f"{KAHAN_LI}, s9odr6a",
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
    f"{KAHAN_LI}, s17odr8a",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# Blanes and Moan's splittings of two flows: order 4 with 6 stages and order 6 with 10, chosen for a small
# error among a family of solutions.
#
# The printed digits (15) lie on a curve (order 6) or a 3-dimensional family (order 4) of solutions. They were
# moved to its nearest point by Gauss-Newton steps of least norm on the order conditions with 60 digits: by at
# most 6e-17 (order 4) and 2e-15 (order 6), and all conditions then hold to 1e-57.

BLANES_MOAN = "Blanes and Moan, J. Comput. Appl. Math. 142 (2002) 313"

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
    f"{BLANES_MOAN}, S6 of order 4",
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
    f"{BLANES_MOAN}, S10 of order 6",
)  # fmt: skip
