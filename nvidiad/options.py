# SPDX-License-Identifier: Apache-2.0
"""The options of nvidiad: its verbs and what stands behind each; completions and manual pages follow."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvidiad import __version__
from nvidiad.configuration import FILE
from nvidiad.rim.client import SOCKET

_EPILOG = """\
exit status: 0 ready, 1 failure, 2 usage, 3 not running, 4 running but not ready, 75 a reboot is to wait
See nvidiad(1)."""

_WHAT = "a directory begins with / or .; a file: oci-layout:DIR, oci-archive:FILE, docker-archive:FILE"


def parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    made = argparse.ArgumentParser(
        prog="nvidiad",
        description="Keep the right NVIDIA driver on a host that updates itself.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", choices=("pretty", "short", "off"), default="off", help="print JSON")
    common.add_argument("--config", type=Path, default=FILE, metavar="FILE")
    common.add_argument(
        "--root", type=Path, default=Path("/"), metavar="PATH", help="look at the host below PATH"
    )
    common.add_argument("--socket", default=SOCKET, metavar="PATH", help=argparse.SUPPRESS)
    made.add_argument("--version", action="version", version=f"nvidiad {__version__}")
    verbs = made.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in (
        ("status", "say whether the GPU is usable, and if not, why (default)"),
        ("plan", "say what would be done and why, without the daemon, and do nothing"),
        ("reconcile", "let the daemon look now, back-off or not"),
        ("list", "list the trees on this host"),
        ("check", "say of everything that can be wrong whether it is, and what to do"),
        ("explain", "say what a code means, where it comes from, and what to do"),
        ("install", "install a tree from an image, from a file that holds one, or from a directory"),
        ("gc", "remove the trees that nothing needs"),
        ("reboot-check", "say whether a reboot may go now: exit 0 go, 75 wait"),
        ("run", "run the daemon (nvidiad.service does)"),
        ("activate", "bring the driver on disk into force (nvidia.service does)"),
        ("deactivate", "undo activate"),
        ("cdi", "describe the GPUs for containers (nvidia-cdi.service does)"),
        ("health", "ask NVML after the GPUs (nvidia-health.service does)"),
        ("fabric", "become the driver's fabric manager (nvidia-fabricmanager.service does)"),
    ):
        verb = verbs.add_parser(name, help=text, description=text, parents=[common])
        if name == "install":
            verb.add_argument("what", metavar="IMAGE|FILE|DIRECTORY", help=_WHAT)
        if name == "explain":
            verb.add_argument("codes", nargs="*", metavar="CODE", help="as in brackets behind a sentence")
        if name == "gc":
            verb.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return made
