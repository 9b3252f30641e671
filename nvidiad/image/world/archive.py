# SPDX-License-Identifier: Apache-2.0
"""Debian's archive: a private apt over the mirrors of this machine, its packages, and trees made of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.thought import debian
from nvidiad.nouns.errors import Code, Permanent, Transient
from nvidiad.nouns.model import Progress
from nvidiad.world import files, process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvidiad.image.nouns.model import Architecture, OsRelease
    from nvidiad.image.thought.debian import Offer

COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECURITY = re.compile(r"-security$")
_ASK = 60.0
_FETCH = 1800.0
_MERGED = 'for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done'
_NOT_WANTED = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/bash-completion"),
    *("usr/share/lintian", "usr/share/bug", "usr/share/initramfs-tools", "usr/share/perl5"),
    *("etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list"),
)


class Archive:
    """An apt of its own below a directory: it sees the given suites and nothing of this machine's sources.

    `sources` are lines of a sources.list to use instead of this machine's mirrors: a snapshot, a mirror.
    """

    def __init__(
        self,
        directory: Path,
        suites: Sequence[str],
        architecture: Architecture,
        *,
        sources: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._suites = tuple(suites)
        self._architecture = architecture
        self._sources = tuple(sources)
        self._ready = False

    # -- asking ------------------------------------------------------------------------------------

    def kernels(self, suite: str = "") -> tuple[OsRelease, ...]:
        """The kernels that have an image and headers, in one of the suites or in all, oldest first."""
        names = debian.headers(self._ask("pkgnames", "linux-").split(), self._architecture)
        found = debian.releases(self._ask("madison", *names), self._architecture) if names else ()
        return tuple(release for release in found if suite in ("", release.channel))

    def offers(self, packages: Sequence[str]) -> tuple[Offer, ...]:
        """Every version that the archive has of these packages; names that it does not know are left out."""
        return debian.offers(self._ask("madison", *packages))

    def depends(self, package: str) -> str:
        """The dependencies of a package as it states them; source-invalid where it is not in the archive."""
        shown = self._ask("show", "--no-all-versions", package)
        for line in shown.splitlines():
            if line.startswith("Depends: "):
                return line.removeprefix("Depends: ")
        raise Permanent(
            Code.SOURCE_INVALID,
            f"Debian's archive has no package '{package}' in {', '.join(self._suites)}",
            "Choose another kernel or driver, or add the suite that has it.",
        )

    # -- fetching ----------------------------------------------------------------------------------

    def download(
        self, packages: Sequence[str], dest: Path, tell: Callable[[Progress], None]
    ) -> tuple[Path, ...]:
        """Fetch packages (`NAME` or `NAME=VERSION`) into a directory; apt has checked their signatures."""
        files.make_directory(dest)
        options = self._options()
        before = set(dest.iterdir())
        for number, package in enumerate(packages):
            tell(Progress("download-packages", f"{package} ({number + 1} of {len(packages)})"))
            command = ["env", f"--chdir={dest}", "apt-get", *options, "-qq", "download", package]
            process.check(command, timeout=_FETCH, code=Code.DOWNLOAD_FAILED, remedy=_REMEDY)
        return tuple(sorted(set(dest.iterdir()) - before))

    def unpack(self, package: Path, dest: Path) -> None:
        """Write the files of a package below a directory; none of its scripts is run."""
        files.make_directory(dest)
        command = ["dpkg-deb", "--extract", str(package), str(dest)]
        process.check(command, timeout=_FETCH, code=Code.SOURCE_INVALID)

    def tree(self, packages: Sequence[str], dest: Path, tell: Callable[[Progress], None]) -> None:
        """Write a tar archive of a tree with these packages and what they depend on.

        They are only unpacked: no script of a package is run, so an image of another kernel changes nothing.
        """
        self._options()
        command = ["mmdebstrap", "--variant=extract", "--format=tar", f"--include={','.join(packages)}"]
        command += [f"--architectures={self._architecture}", "--skip=check/empty"]
        # In a file and not on the command line, as a proxy may have a password; and not in the tree.
        network = self._directory / "network.conf"
        files.atomic_write(network, "".join(f"{line};\n" for line in _network_settings()), 0o600)
        command.append(f"--aptopt={network}")
        command += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
        # A tree where /lib is one with /usr/lib, as Debian has it; what update-alternatives would have made;
        # and without what modules are neither built nor loaded with.
        command.append(f"--setup-hook={_MERGED}")
        unwanted = " ".join(f'"$1/{path}"' for path in _NOT_WANTED)
        command.append(f'--extract-hook=ln -sf mawk "$1/usr/bin/awk"; rm -rf {unwanted}')
        command += [self._suites[0], str(dest), str(self._directory / "sources.list")]

        def say(line: str) -> None:
            tell(Progress("make-tree", line))

        process.follow(command, timeout=_FETCH, say=say, code=Code.DOWNLOAD_FAILED, remedy=_REMEDY)

    # -- the private apt ---------------------------------------------------------------------------

    def _ask(self, verb: str, *words: str) -> str:
        command = ["apt-cache", *self._options(), verb, *words]
        finished = process.run(command, timeout=_ASK)
        # madison and show exit with an error where they know none of the names, which is an answer.
        if finished.returncode not in (0, 100):
            raise Transient(Code.FEED_UNREACHABLE, process.failed(finished), _REMEDY)
        return finished.out

    def _options(self) -> list[str]:
        where = self._directory
        settings = {
            "Dir::Etc::SourceList": f"{where}/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": f"{where}/lists",
            "Dir::Cache": f"{where}/cache",
            "APT::Architecture": str(self._architecture),
            "APT::Architectures": str(self._architecture),
            "APT::Sandbox::User": "root",  # the directory may lie where the user _apt cannot write
            "Acquire::Languages": "none",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        if not self._ready:
            for folder in ("lists/partial", "cache/archives/partial"):
                files.make_directory(where / folder)
            lines = self._sources or _sources(self._suites, self._architecture)
            files.atomic_write(where / "sources.list", "\n".join(lines) + "\n")
            # By itself apt calls it a success when it reached nobody and goes on with what it had: nothing.
            command = ["apt-get", *options, "-o", "APT::Update::Error-Mode=any", "-qq", "update"]
            process.check(command, timeout=_FETCH, code=Code.FEED_UNREACHABLE, remedy=_REMEDY)
            self._ready = True
        return options


_REMEDY = "Check the network and this machine's package sources: apt-get update."


def _sources(suites: Sequence[str], architecture: Architecture) -> list[str]:
    """Lines for the suites on the mirrors that this machine's apt uses."""
    form = ["--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    listed = process.check(["apt-get", "indextargets", *form], timeout=_ASK, remedy=_REMEDY).out
    mirrors = {words[0]: words[1] for line in listed.splitlines() if len(words := line.split(" ", 1)) == 2}
    if "Debian" not in mirrors:
        raise Permanent(
            Code.FEED_UNREACHABLE,
            "this machine's apt has no Debian source with an index",
            "Run apt-get update, or name the sources to use.",
        )
    # A machine without a security source (a slim container) finds that suite beside its main mirror.
    security = mirrors.get("Debian-Security", mirrors["Debian"].rstrip("/") + "-security/")
    kind = f"deb [arch={architecture} signed-by={KEYRING}]"
    return [
        f"{kind} {security if _SECURITY.search(suite) else mirrors['Debian']} {suite} {' '.join(COMPONENTS)}"
        for suite in suites
    ]


def _network_settings() -> list[str]:
    """Settings of this machine's apt about the network, which mmdebstrap does not read by itself."""
    names = r"Acquire::(Check-Valid-Until|Check-Date|https?::Proxy|https::CaInfo|Retries)"
    dumped = process.check(["apt-config", "dump"], timeout=_ASK).out
    return [line.rstrip(";") for line in dumped.splitlines() if re.match(rf'{names} ".+";$', line)]
