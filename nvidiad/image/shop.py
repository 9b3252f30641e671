# SPDX-License-Identifier: Apache-2.0
"""The shop: what one image is made with, from the feeds to the proof; its adapters are chosen here."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.nouns import developer as developers
from nvidiad.image.nouns.model import Architecture, Family, OsRelease, SourceKind
from nvidiad.image.thought import feeds
from nvidiad.image.thought.debian import suites
from nvidiad.image.verbs import build as building
from nvidiad.image.verbs import cuda, debian, developer, prove, releases
from nvidiad.image.world import driver as packages
from nvidiad.image.world import filesystem, signatures
from nvidiad.image.world.archive import Archive
from nvidiad.image.world.contents import Contents
from nvidiad.image.world.engine import Engine
from nvidiad.image.world.fetch import Downloads
from nvidiad.image.world.kernel_files import KernelFiles
from nvidiad.image.world.qemu import Hardware, Qemu
from nvidiad.image.world.workspace import Workspace
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.value import Value, replace
from nvidiad.world.modules import Modules
from nvidiad.world.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nvidiad.image.nouns.model import DriverSource, Verdict
    from nvidiad.image.thought.package import Layout
    from nvidiad.nouns.model import Build, Progress

    Tell = Callable[[Progress], None]

URLS = ("http://", "https://")


class Shop(Value):
    """What every verb needs: the engine, where files may lie, and how to get at registries and feeds."""

    socket: str = "/run/docker.sock"
    temporary: Path = Path("/var/tmp")  # noqa: S108 # not /tmp: a disk image has gigabytes
    cache: Path | None = None
    """Where downloads are kept; nowhere without it."""
    auth_file: Path | None = None
    mirror: str = ""
    keys: tuple[Path, ...] = ()
    apt_sources: tuple[str, ...] = ()
    """Lines of a sources.list to take Debian's packages from, instead of this machine's mirrors."""
    accelerator: str = "tcg"
    insecure: bool = False

    @property
    def engine(self) -> Engine:
        """The container engine; nothing is asked of it yet."""
        return Engine(self.socket)


class Making(Value):
    """How images are made, beyond what a recipe says."""

    base: str = ""
    developers: str = ""
    """In front of the names of developer images."""
    jobs: int = 0
    fresh: bool = False
    keep: bool = False
    key: Path | None = None
    certificate: Path | None = None


# ---------------------------------------------------------------------------------------------------
# Releases and developer images


def find(
    shop: Shop,
    family: Family,
    channels: Sequence[str],
    architectures: Sequence[Architecture],
    newest: int,
    tell: Tell,
) -> releases.Found:
    """The releases of an OS; for Debian the kernels of suites that have headers."""
    if family is Family.DEBIAN:
        found = []
        for architecture in architectures:
            with debian_archive(shop, channels, architecture) as archive:
                for suite in channels:
                    # The archive gives the oldest first.
                    found += list(reversed(archive.kernels(suite)))[: newest or None]
        return releases.Found(tuple(found), ())
    return releases.find_releases(
        family,
        channels,
        architectures,
        newest=newest,
        mirrors=mirrors(shop, family),
        texts=Downloads(),
        tell=tell,
    )


def find_one(
    shop: Shop, family: Family, version: str, architecture: Architecture, channel: str, tell: Tell
) -> releases.Found:
    """One release by its version; a Debian one by its kernel."""
    if family is Family.DEBIAN:
        with debian_archive(shop, [channel], architecture) as archive:
            found = [each for each in archive.kernels() if each.version == version]
        if found:
            return releases.Found((found[-1],), ())
        raise Permanent(
            Code.RELEASE_UNKNOWN,
            f"Debian's suite '{channel}' has no kernel '{version}' with an image and headers",
            "'nvidiad-image releases --family=debian' shows what there is; --channel names another suite.",
        )
    return releases.find_release(
        family,
        version,
        architecture,
        channel=channel,
        mirrors=mirrors(shop, family),
        texts=Downloads(),
        tell=tell,
    )


def mirrors(shop: Shop, family: Family) -> feeds.Mirrors:
    """The servers of an OS: its maker's, or the mirror that was named."""
    return feeds.mirror(shop.mirror) if shop.mirror else feeds.OFFICIAL[family]


@contextmanager
def debian_archive(shop: Shop, wanted: Sequence[str], architecture: Architecture) -> Iterator[Archive]:
    """An apt of its own for these suites, and for those that a suite's packages are updated from."""
    with Workspace(shop.temporary).directory() as place:
        yield Archive(place, tuple(wanted), architecture, sources=shop.apt_sources)


def developer_repository(family: Family, prefix: str) -> str:
    """The repository of an OS's developer images; without a prefix it is the engine's own."""
    name = f"{family}-developer"
    return f"{prefix}/{name}" if prefix else name


def make_developer(
    shop: Shop, release: OsRelease, prefix: str, *, again: bool, tell: Tell
) -> developer.Developer:
    """The developer image of a release, made if the engine does not have it."""
    repository = developer_repository(release.family, prefix)
    if release.family is Family.DEBIAN:
        reference = developers.reference(release, repository)
        made = again or not shop.engine.has(reference)
        with debian_archive(shop, with_updates(release.channel), release.architecture) as archive:
            debian.developer(
                release,
                archive,
                shop.engine,
                Workspace(shop.temporary),
                tell,
                repository=repository,
                again=again,
            )
        return developer.Developer(reference, release, made)
    if not again and (there := developer.existing(release, repository, shop.engine)):
        return there
    downloads = Downloads()
    with Workspace(shop.temporary).directory() as place:
        return developer.make_developer(
            release,
            repository,
            mirrors=mirrors(shop, release.family),
            downloads=downloads,
            trust=keyring(shop, release.family, downloads, place, tell),
            disks=filesystem,
            engine=shop.engine,
            temporary=shop.temporary,
            cache=shop.cache,
            again=again,
            tell=tell,
        )


def keyring(shop: Shop, family: Family, downloads: Downloads, place: Path, tell: Tell) -> signatures.Keyring:
    """The keys that a maker's releases are trusted of; where none are given, the maker's own.

    It is fetched from where the maker publishes it, which need not be trusted: whatever comes, only
    signatures of the primary key whose fingerprint is known here count. Its signing keys change each year.
    """
    try:
        return signatures.keyring(family, shop.keys)
    except Failure:
        maker = signatures.MAKERS.get(family)
        with suppress(Failure):  # then the one above says what a person can do
            if maker and downloads.file(maker.origin, place / maker.file, tell):
                return signatures.Keyring([place / maker.file], frozenset({maker.fingerprint}))
        raise


def with_updates(suite: str) -> tuple[str, ...]:
    """A Debian suite with those that update it: a kernel of one needs packages of the other."""
    return tuple(dict.fromkeys((*suites(suite.partition("-")[0]), suite)))


# ---------------------------------------------------------------------------------------------------
# Building and proving


def dockerfiles() -> Path:
    """The directory `docker` of a checkout, or where an installation has it."""
    places = (Path(__file__).parents[2] / "docker", Path(sys.prefix) / "share/nvidiad/docker")
    for place in places:
        if (place / "transport/Dockerfile").is_file():
            return place
    told = " nor ".join(f"'{place}'" for place in places)
    raise Permanent(Code.COMMAND_FAILED, f"neither {told} has the Dockerfiles", "Install nvidiad again.")


def build(
    shop: Shop, release: OsRelease, source: DriverSource, reference: str, making: Making, tell: Tell
) -> building.Built:
    """The image of a driver for a release, whose developer image is there."""
    usual = building.Options(reference, dockerfiles())
    repository = developer_repository(release.family, making.developers)
    options = replace(
        usual,
        base=making.base or usual.base,
        developer=developers.reference(release, repository),
        jobs=making.jobs,
        key=making.key,
        certificate=making.certificate,
        fresh=making.fresh,
        keep=making.keep,
    )
    return building.build(
        release,
        source,
        options,
        shop.engine,
        Workspace(shop.temporary),
        Modules(),
        lambda driver, dest, tell: unpack(shop, driver, release, dest, tell),
        time.monotonic,
        tell,
    )


def build_cuda(
    shop: Shop,
    toolkit: Path,
    version: str,
    minimum_driver: str,
    architecture: Architecture,
    reference: str,
    base: str,
    tell: Tell,
) -> str:
    """The image of a CUDA toolkit; its name."""
    usual = building.Options(reference, dockerfiles())
    options = replace(usual, base=base or usual.base)
    workspace = Workspace(shop.temporary)
    with workspace.directory() as where:
        manifest, text = cuda.cuda_tree(
            toolkit, version, minimum_driver, architecture, where / "image", workspace, tell
        )
        building.pack(manifest, text, where, options, shop.engine, workspace, tell)
    return reference


def unpack(shop: Shop, source: DriverSource, release: OsRelease, dest: Path, tell: Tell) -> Layout:
    """Fetch a driver's package, check it, unpack it."""
    if source.kind is SourceKind.DEBIAN:
        wanted = suites(source.location or release.channel)
        with debian_archive(shop, wanted, release.architecture) as archive:
            return debian.driver(
                source, archive, packages.arrange_debian, Workspace(shop.temporary), dest, tell
            )
    with Workspace(shop.temporary).directory() as downloaded:
        package = fetch(shop, source, downloaded, tell)
        read = packages.unpack_run if source.kind is SourceKind.RUN else packages.unpack_archive
        layout = read(source, package, dest)
        if source.fabric_manager:
            other = replace(source, location=source.fabric_manager, sha256=source.fabric_manager_sha256)
            layout = packages.add_archive(source, layout, fetch(shop, other, downloaded, tell), dest)
        return layout


def fetch(shop: Shop, source: DriverSource, place: Path, tell: Tell) -> Path:
    """The file of a package, with the digest that it must have."""
    package = Path(source.location).absolute()
    if source.location.startswith(URLS):
        package = (shop.cache or place) / source.location.rpartition("/")[2]
        if not package.exists() and not Downloads().file(source.location, package, tell):
            sentence = f"there is nothing at '{source.location}'"
            raise Permanent(Code.SOURCE_INVALID, sentence, "Correct its location.")
    elif not package.is_file():
        raise Permanent(Code.SOURCE_INVALID, f"there is no file '{package}'", "Correct its location.")
    try:
        packages.check(source, package, tell)
    except Failure:
        if source.location.startswith(URLS):
            package.unlink()  # out of the cache, too: the next run is to fetch it again
        raise
    return package


class Against(Value):
    """The kernel that an image is proven against: one of a developer image, or of a directory."""

    developer: str = ""
    root: Path | None = None
    kernel: str = ""
    """Its release; empty for the one that the image names."""


def proof(
    shop: Shop,
    image: str,
    against: Against,
    *,
    expected: Build | None = None,
    booting: prove.Booting = prove.Booting.REQUIRED,
    tell: Tell,
) -> Verdict:
    """Prove an image that the engine has."""
    with Workspace(shop.temporary).directory() as work:
        engine = shop.engine

        def kernel(wanted: Build) -> KernelFiles:
            release = against.kernel or wanted.kernel
            if against.root is not None:
                return KernelFiles(against.root, release)
            reference = against.developer or _developer_of(engine, image, wanted)
            if not engine.has(reference):
                raise Permanent(
                    Code.IMAGE_MISSING,
                    f"the developer image '{reference}', which has the kernel, is not in the engine",
                    "Make it with 'nvidiad-image developer', or name another: --developer, --kernel-root.",
                )
            return KernelFiles(
                work / "kernel", release, lambda path, dest: prove.fetched(engine, reference, path, dest)
            )

        machine = Qemu(work, Hardware(accelerator=shop.accelerator))
        prover = prove.Prover(
            images=engine,
            kernel=kernel,
            trees=Trees,
            contents=Contents(),
            machine=machine,
            work=work,
            clock=time.monotonic,
        )
        return prove.prove(image, prover, expected=expected, booting=booting, tell=tell)


def _developer_of(engine: Engine, image: str, build: Build) -> str:
    """The name of the developer image that a driver image was most likely built in."""
    family = engine.labels(image).get(f"{manifests.LABEL}os.id", "")
    if family not in tuple(Family):
        sentence = f"'{image}' is for '{family}', whose developer images have no name that is known"
        raise Permanent(Code.IMAGE_FOREIGN, sentence, "Name one: --developer, or --kernel-root.")
    return developers.reference(OsRelease(Family(family), build.os_version, "", Architecture.AMD64))
