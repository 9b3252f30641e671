# SPDX-License-Identifier: Apache-2.0
"""Fill in contrib/provision for one release: versions, hashes and units in the place of their names."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCE = CHECKOUT / "contrib/provision"
_BUNDLE = re.compile(r"nvidiad-(?P<version>[^-]+)-(?P<arch>.+)\.tar\.gz")
# Debian has names of its own for architectures.
_DEBIAN = {"x86-64": "amd64", "arm64": "arm64"}
# A whole file as the value of a key; "USR" is one of units/ as a system extension has it.
_FILE = re.compile(
    r'^(?P<indent> *)(?P<key>(?:- )?\w+): "@(?P<kind>FILE|USR):(?P<path>[^@"]+)@"$', re.MULTILINE
)
_NAME = re.compile(r"@([A-Z][A-Z0-9_]*)@")


def variables(sums: str, url: str, arch: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """What the names stand for, from a release's SHA256SUMS; names of what is not in there are missing."""
    hashes = {name: digest for digest, name in (line.split() for line in sums.splitlines())}
    matches = [match for name in hashes if (match := _BUNDLE.fullmatch(name)) and match["arch"] == arch]
    if not matches:
        raise ValueError(f"SHA256SUMS names no bundle for '{arch}'")
    name = matches[0][0].removesuffix(".tar.gz")
    found = {"VERSION": matches[0]["version"], "NAME": name, "URL": url.rstrip("/"), **chosen}
    found["SHA256_TAR_GZ"] = hashes[f"{name}.tar.gz"]
    for package in hashes:
        if package == f"{name}.raw":
            found["SHA256_RAW"] = hashes[package]
        if package.endswith(f"_{_DEBIAN[arch]}.deb"):
            found |= {"DEB": package, "SHA256_DEB": hashes[package]}
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its names filled in; a ValueError for one that nothing is known of."""

    def file(match: re.Match[str]) -> str:
        content = (CHECKOUT / match["path"]).read_text()
        if match["kind"] == "USR":
            content = content.replace("/opt/nvidiad/", "/usr/lib/nvidiad/")
        # Deeper than the key, which in a list is behind its dash.
        margin = " " * (len(match["indent"]) + 2 + 2 * match["key"].startswith("- "))
        lines = [f"{margin}{line}".rstrip() for line in content.splitlines()]
        return "\n".join([f"{match['indent']}{match['key']}: |", *lines])

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"nothing is known of '@{match[1]}@'")
        return values[match[1]]

    return _NAME.sub(value, _FILE.sub(file, text))


def render(target: Path, values: Mapping[str, str]) -> None:
    """Every file of contrib/provision below `target`, filled in."""
    shutil.copytree(SOURCE, target, dirs_exist_ok=True)
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            try:
                path.write_text(filled(path.read_text(), values))
            except ValueError as error:
                raise ValueError(f"{path.relative_to(target)}: {error}") from error


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.provision", description=__doc__)
    parser.add_argument("dist", type=Path, help="the directory with the release's SHA256SUMS")
    parser.add_argument("target", type=Path, help="where to put the filled-in files")
    parser.add_argument(
        "--url", required=True, help="where the files of the release will be, without their names"
    )
    parser.add_argument("--arch", choices=sorted(_DEBIAN), default="x86-64")
    parser.add_argument("--driver", default="535.309.01", help="driver.version")
    parser.add_argument("--repository", default="registry.example/nvidia-driver", help="image.repository")
    options = parser.parse_args(arguments)
    chosen = {"DRIVER": options.driver, "REPOSITORY": options.repository}
    try:
        sums = (options.dist / "SHA256SUMS").read_text()
        render(options.target, variables(sums, options.url, options.arch, chosen))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"provision: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
