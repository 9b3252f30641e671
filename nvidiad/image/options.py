# SPDX-License-Identifier: Apache-2.0
"""The options of nvidiad-image, in groups that verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvidiad.image.nouns.model import Architecture, Family, SourceKind
from nvidiad.nouns.model import Flavour

APT = "of a sources.list for Debian's packages, instead of this machine's"
KEY = "public keys that releases are signed with, instead of the maker's"


def place(text: str) -> Path:
    """A path that stays right for programs, which are started elsewhere."""
    return Path(text).absolute()


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("expected a number")
    return int(text)


def common() -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--json", choices=("pretty", "short", "off"), default="off", help="print JSON")
    return group


def engine() -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--engine", default="/run/docker.sock", metavar="SOCKET", help="of the Docker Engine")
    group.add_argument("--temporary", type=place, default=Path("/var/tmp"), metavar="DIRECTORY")  # noqa: S108
    group.add_argument("--cache", type=place, metavar="DIRECTORY", help="keep downloads there")
    group.add_argument("--apt-source", action="append", default=[], metavar="LINE", help=APT)
    return group


def feeds(*, several: bool = False) -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--family", type=Family, default=Family.FLATCAR, metavar="|".join(Family))
    group.add_argument("--mirror", default="", metavar="URL", help="instead of the maker's servers")
    if several:
        group.add_argument("--channel", action="append", default=[], metavar="NAME", help="or Debian suite")
        group.add_argument(
            "--architecture", action="append", type=Architecture, default=[], metavar="amd64|arm64"
        )
        group.add_argument("--newest", type=count, default=1, metavar="N", help="of each channel; 0: all")
    else:
        group.add_argument("--channel", default="", metavar="CHANNEL", help="or Debian suite")
        group.add_argument("--architecture", type=Architecture, default=Architecture.AMD64, metavar="ARCH")
        group.add_argument("--key", type=place, action="append", default=[], metavar="FILE", help=KEY)
    return group


def driver() -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--driver", required=True, metavar="VERSION")
    group.add_argument("--flavour", type=Flavour, default=Flavour.OPEN, metavar="|".join(Flavour))
    group.add_argument("--product", default="", metavar="NAME", help="goes into the tag")
    group.add_argument("--source", type=SourceKind, default=SourceKind.RUN, metavar="|".join(SourceKind))
    group.add_argument("--location", default="", metavar="URL|FILE|SUITE", help="of the driver's package")
    group.add_argument("--sha256", default="", metavar="HEX", help="of the driver's package")
    group.add_argument(
        "--fabric-manager", default="", metavar="URL|FILE", help="its archive, for NVSwitches"
    )
    group.add_argument("--fabric-manager-sha256", default="", metavar="HEX")
    group.add_argument("--graphics", action="store_true", help="with the graphics libraries")
    group.add_argument("--repository", default="nvidia-driver", metavar="REPOSITORY")
    group.add_argument("--tag", default="", metavar="TEMPLATE", help="as image.tag of nvidiad.toml")
    group.add_argument("--developers", default="", metavar="PREFIX", help="of the developer images' names")
    group.add_argument("--base", default="", metavar="IMAGE", help="under the installer")
    group.add_argument("--jobs", type=int, default=0, metavar="N", help="compilers at once")
    group.add_argument("--module-key", type=place, metavar="PEM", help="signs the kernel modules")
    group.add_argument("--module-certificate", type=place, metavar="PEM")
    group.add_argument("--sbom", type=place, metavar="FILE", help="write the bill of materials there")
    group.add_argument("--fresh", action="store_true", help="use nothing of earlier builds")
    return group
