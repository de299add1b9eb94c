"""What ``revstep verify --html`` puts on its page."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any


def check_page(args: argparse.Namespace) -> None:
    """Before minutes of measuring. Raises ConfigError: matplotlib is missing."""
    if args.html:
        from revstep.extras import require

        require("matplotlib", "revstep verify --html")


def write_page(args: argparse.Namespace, environment: dict[str, Any], done: dict[str, Any]) -> Path:
    """DIR/index.html, from the outcomes of the parts that were measured."""
    from ..verify.report import Page, network_pictures, ode_pictures
    from . import _verify_networks, _verify_ode

    failures = [f"{label}: {r}" for o in done.values() for label, r in o.failures]
    page = Page(environment, "revstep " + shlex.join(sys.argv[1:]), sum(o.claims for o in done.values()), failures)
    print("measuring and drawing the figures\n")
    if "networks" in done:
        section = _verify_networks.section(done["networks"])
        section.pictures = network_pictures()
        page.sections.append(section)
    if "ode" in done:
        section = _verify_ode.section(done["ode"])
        section.pictures = ode_pictures(args.method)
        page.sections.append(section)
    return page.write(Path(args.html))
