"""The commands demo, bench and verify, one module each, as :mod:`revstep._cli` expects them."""
