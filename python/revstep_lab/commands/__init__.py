"""The commands demo, bench and verify, one module each, as :mod:`revstep.cli` expects them."""
