"""Measurements beside the library: the demo, the benchmark, and the claims of ``revstep verify`` with their
mutants.

A distribution of its own, revstep-lab: it may use everything in revstep, and nothing in revstep uses it. Its
commands (``revstep demo``, ``bench`` and ``verify``) are found by the command line of revstep where it is
installed.
"""
