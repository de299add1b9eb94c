"""Suzuki's fivefold composition of order 4, and the one of order 8 by Suzuki and Umeno.

Order 4 has the closed form 1 / (4 - 4^(1/3)). The printed digits of order 8 (26 after the point) are reproduced by Newton's method on the order conditions
with 60 digits.
"""

from .base import Composition

SUZUKI4 = Composition(
    "suzuki4", 4, (0.4144907717943757371423541, 0.4144907717943757371423541, -0.6579630871775029485694163), "Suzuki, Phys. Lett. A 146 (1990) 319"
)

SUZUKI_UMENO8 = Composition(
    "suzuki_umeno8", 8,
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
    "Suzuki and Umeno, in Computer Simulation Studies in Condensed-Matter Physics VI (1993), as printed in Hairer, Lubich, Wanner, section V.3.2",
)  # fmt: skip
