# SPDX-License-Identifier: Apache-2.0
"""The command line of nvidiad-kubernetes: options, exit statuses."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import __version__
from nvidiad.nouns.errors import Failure
from nvidiad.rim.client import SOCKET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FAILED = 1
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_DESCRIPTION = """\
Tell FLUO what nvidiad says of this host, by annotations of its node: io.nvidiad/driver-staged=true where
the label before-reboot asks for it and a reboot may go, io.nvidiad/driver-ready=true where after-reboot asks
for it and the host is as it should be. And take the taint io.nvidiad/driver-not-ready off a node whose
driver works."""
_EPILOG = """\
exit status: 0 told to end, 1 failure, 2 usage; what may pass by itself is tried again
See docs/kubernetes.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the companion; the exit status, where it could not begin."""
    options = parser(os.environ).parse_args(arguments)
    try:
        from nvidiad.kubernetes import app
    except ModuleNotFoundError as error:
        print(f"nvidiad-kubernetes: {error.name} is not installed", file=sys.stderr)
        print("Install it with: pip install 'nvidiad[kubernetes]'", file=sys.stderr)
        return FAILED
    from nvidiad.world.journal import PlainLog

    try:
        where = app.cluster(options.node, options.kubeconfig, options.service_account)
        app.run(
            options.node, where, None if options.without_nvidiad else options.socket, PlainLog(os.environ)
        )
    except Failure as failure:
        print(f"nvidiad-kubernetes: {failure.sentence} [{failure.code}]", file=sys.stderr)
        print(failure.remedy, file=sys.stderr)
        return FAILED


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The options, with defaults from the environment."""
    made = argparse.ArgumentParser(
        prog="nvidiad-kubernetes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kubeconfig = environment.get("KUBECONFIG")
    # As the kubelet names its node where nobody tells it another name.
    node = environment.get("NODE_NAME") or socket.gethostname().lower()
    made.add_argument("--version", action="version", version=f"nvidiad-kubernetes {__version__}")
    made.add_argument(
        "--node", default=node, metavar="NAME", help="this host's node ($NODE_NAME, else the host name)"
    )
    made.add_argument(
        "--kubeconfig",
        type=Path,
        default=Path(kubeconfig) if kubeconfig else None,
        metavar="FILE",
        help="how the API server is reached ($KUBECONFIG, else the pod's service account)",
    )
    made.add_argument("--service-account", type=Path, default=Path(ACCOUNT), metavar="DIRECTORY")
    made.add_argument("--socket", default=SOCKET, metavar="PATH", help="nvidiad's socket")
    made.add_argument(
        "--without-nvidiad", action="store_true", help="confirm everything: for nodes that have no nvidiad"
    )
    return made
