# SPDX-License-Identifier: Apache-2.0
"""From a mirror in the true shape to a developer image in a real engine, and what ends it early."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Architecture, Family, OsRelease
from nvidiad.image.thought import feeds
from nvidiad.image.verbs.developer import Developer, make_developer
from nvidiad.image.verbs.releases import find_release
from nvidiad.image.world import filesystem
from nvidiad.image.world.fetch import Downloads, Limits
from nvidiad.image.world.signatures import Keyring
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.value import replace
from tests.images import mirror as mirrors
from tests.images.mirror import BZ2, OFFSET, SMALL_KERNEL, VMLINUZ, Mirror, Signer
from tests.images.webserver import Fault
from tests.vm.kernels import kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvidiad.nouns.model import Progress
    from tests.images.workshop import Workshop

VERSION = "4593.2.5"
REPOSITORY = "test/flatcar-developer"
REFERENCE = f"{REPOSITORY}:{VERSION}"
QUICK = Limits(connect=2, stall=2, total=120, retries=1, pause=0.01)
RELEASE = OsRelease(Family.FLATCAR, VERSION, "stable", Architecture.AMD64)
_MODULE = """#include <linux/module.h>
static int __init hello(void) { return 0; }
module_init(hello);
MODULE_LICENSE("GPL");
"""


class Bench:
    """A mirror, an engine, and a directory that must be empty afterwards."""

    def __init__(self, mirror: Mirror, workshop: Workshop, place: Path) -> None:
        self.mirror = mirror
        self.workshop = workshop
        self.place = place
        self.temporary = place / "temporary"
        self.temporary.mkdir()
        self.told: list[Progress] = []

    def make(
        self, release: OsRelease = RELEASE, *, cache: Path | None = None, again: bool = False
    ) -> Developer:
        return make_developer(
            release,
            REPOSITORY,
            mirrors=feeds.mirror(self.mirror.url),
            downloads=Downloads(QUICK),
            trust=Keyring([self.mirror.key]),
            disks=filesystem,
            engine=self.workshop.engine,
            temporary=self.temporary,
            cache=cache,
            again=again,
            tell=self.told.append,
        )

    def fails(self, cache: Path | None = None, release: OsRelease = RELEASE) -> Failure:
        """Make it, which fails: then nothing is left in the engine or on the disk."""
        with pytest.raises(Failure) as caught:
            self.make(release, cache=cache)
        assert not self.workshop.engine.has(REFERENCE)
        assert list(self.temporary.iterdir()) == []
        return caught.value

    def add(self, disk: Path, vmlinuz: Path | None = None) -> Path:
        return self.mirror.add_release("stable", VERSION, disk=disk, vmlinuz=vmlinuz)

    def small(
        self,
        version: str = VERSION,
        kernel: str = SMALL_KERNEL,
        number: int = 9,
        label: str = "ROOT",
        change: Callable[[Path], None] | None = None,
        damage: Callable[[Path], None] | None = None,
    ) -> Path:
        return mirrors.small_disk(
            self.place,
            version,
            kernel=kernel,
            number=number,
            label=label,
            change=change,
            damage=damage,
        )


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Iterator[Bench]:
    with Mirror(tmp_path / "www") as mirror:
        yield Bench(mirror, workshop, tmp_path)
    if workshop.engine.has(REFERENCE):
        workshop.engine.remove(REFERENCE)


def test_a_release_becomes_an_image_that_compiles(bench: Bench) -> None:
    kernel = kernels().a
    bench.add(mirrors.full_disk(VERSION, kernel), vmlinuz=kernel.image)
    found = find_release(
        Family.FLATCAR,
        "stable",
        Architecture.AMD64,
        mirrors=feeds.mirror(bench.mirror.url),
        texts=Downloads(QUICK),
        tell=bench.told.append,
    )
    bench.mirror.server.fail(BZ2, Fault(cut_after=40 << 20, times=2))
    made = bench.make(found.releases[0])
    assert made.made and made.reference == REFERENCE
    assert made.release.kernel == kernel.release
    assert made.notes == ()
    ranges = [one.range for one in bench.mirror.server.asked if one.path.endswith(BZ2)]
    assert ranges == ["", f"bytes={40 << 20}-", f"bytes={80 << 20}-"]
    steps = list(dict.fromkeys(progress.step for progress in bench.told))
    assert steps[:4] == ["read-feeds", "download", "hash", "verify"]
    assert steps[4:] == ["decompress", "unpack-root", "pack", "import-image"]
    assert list(bench.temporary.iterdir()) == []

    labels = bench.workshop.engine.labels(REFERENCE)
    assert labels["io.nvidiad.developer.os.id"] == "flatcar"
    assert labels["io.nvidiad.developer.os.version"] == VERSION
    assert labels["io.nvidiad.developer.architecture"] == "amd64"
    assert labels["io.nvidiad.developer.kernel"] == kernel.release
    assert labels["io.nvidiad.developer.source"].endswith(f"/stable/amd64-usr/{VERSION}/{BZ2}")

    script = f"""set -e
        . /etc/os-release; echo "$ID $VERSION_ID"
        ls /usr/lib/modules; ls /usr/boot
        mkdir /hello; cd /hello
        printf '%s' '{_MODULE}' > hello.c
        echo 'obj-m := hello.o' > Kbuild
        make -s -C /usr/lib/modules/{kernel.release}/build M=/hello modules >&2
        strings -n 8 hello.ko | grep '^vermagic='"""
    out = bench.workshop.docker("run", "--rm", "--network=none", REFERENCE, "/bin/bash", "-c", script)
    lines = [line for line in out.splitlines() if line.startswith(("flatcar", "6.", "vmlinuz", "vermagic"))]
    assert lines[:3] == [f"flatcar {VERSION}", kernel.release, f"vmlinuz-{kernel.release}"]
    assert lines[3].startswith(f"vermagic={kernel.release} SMP")


def test_a_second_run_does_nothing(bench: Bench) -> None:
    bench.add(bench.small())
    assert bench.make().made
    bench.mirror.server.asked.clear()
    again = bench.make()
    assert not again.made and again.release.kernel == SMALL_KERNEL
    assert again.notes == (f"'{REFERENCE}' is there already",)
    assert bench.mirror.server.asked == []
    assert bench.make(again=True).made


def test_an_image_of_another_release_under_the_name_is_made_anew(bench: Bench) -> None:
    bench.add(bench.small())
    bench.make()
    bench.workshop.engine.tag(REFERENCE, f"{REPOSITORY}:4593.2.6")
    other = bench.small("4593.2.6")
    bench.mirror.add_release("stable", "4593.2.6", disk=other)
    made = bench.make(replace(RELEASE, version="4593.2.6"))
    assert made.made
    assert bench.workshop.engine.labels(made.reference)["io.nvidiad.developer.os.version"] == "4593.2.6"
    bench.workshop.engine.remove(made.reference)


def test_a_nightly_has_no_plus_in_its_tag(bench: Bench) -> None:
    version = "4593.2.5+nightly-1"
    bench.mirror.add_release("stable", version, disk=bench.small(version))
    made = bench.make(replace(RELEASE, version=version))
    assert made.reference == f"{REPOSITORY}:4593.2.5-nightly-1"
    bench.workshop.engine.remove(made.reference)


def test_the_kernel_is_what_the_image_has(bench: Bench) -> None:
    bench.add(bench.small())
    made = bench.make(replace(RELEASE, kernel="6.6.59-flatcar"))
    assert made.release.kernel == SMALL_KERNEL
    assert "the feed says kernel '6.6.59-flatcar'" in made.notes[0]
    assert f"'prove' has no kernel to boot for {RELEASE}" in made.notes[1]


# -- the cache --------------------------------------------------------------------------------------


def test_a_cache_keeps_what_was_downloaded(bench: Bench) -> None:
    cache = bench.place / "cache"
    bench.add(bench.small())
    bench.make(cache=cache)
    bench.mirror.server.asked.clear()
    bench.make(cache=cache, again=True)
    assert not any(path.endswith(BZ2) for path in bench.mirror.server.paths())


def test_a_cut_download_goes_on_in_the_next_run(bench: Bench) -> None:
    cache = bench.place / "cache"
    place = bench.add(bench.small())
    bench.mirror.server.faults[f"/{BZ2}"] = Fault(cut_after=1000, times=1)
    bench.mirror.server.faults[f"{VERSION}/{BZ2}"] = Fault(cut_after=0)
    failure = bench.fails(cache)
    assert failure.code is Code.DOWNLOAD_FAILED and failure.retry
    assert f"{VERSION}/{BZ2}' cannot be downloaded: " in failure.sentence
    bench.mirror.server.faults.clear()
    bench.mirror.server.asked.clear()
    assert bench.make(cache=cache).made
    assert (place / BZ2).stat().st_size > 1000
    assert "bytes=1000-" in [one.range for one in bench.mirror.server.asked]


def test_what_is_wrong_does_not_stay_in_the_cache(bench: Bench) -> None:
    cache = bench.place / "cache"
    place = bench.add(bench.small())
    good = (place / BZ2).read_bytes()
    (place / BZ2).write_bytes(b"x" + good[1:])
    assert bench.fails(cache).code is Code.DIGEST_MISMATCH
    (place / BZ2).write_bytes(good)
    assert bench.make(cache=cache).made


# -- what ends it early -----------------------------------------------------------------------------


def test_a_download_that_is_cut_for_good(bench: Bench) -> None:
    bench.add(bench.small())
    bench.mirror.server.fail(BZ2, Fault(cut_after=0))
    failure = bench.fails()
    assert failure.code is Code.DOWNLOAD_FAILED
    assert failure.sentence.endswith("the connection ended too early, 3 times without a byte")
    assert failure.sentence.startswith(f"'{bench.mirror.url}/stable/amd64-usr/{VERSION}/{BZ2}'")


def test_a_release_that_is_not_there(bench: Bench) -> None:
    failure = bench.fails()
    assert failure.code is Code.RELEASE_UNKNOWN
    assert failure.sentence.startswith(f"no server has '{BZ2}' of flatcar {VERSION} (amd64)")


def test_a_truncated_file_on_the_server(bench: Bench) -> None:
    place = bench.add(bench.small())
    (place / BZ2).write_bytes((place / BZ2).read_bytes()[:-100])
    failure = bench.fails()
    assert failure.code is Code.DIGEST_MISMATCH
    assert f"{BZ2}' has the SHA512 " in failure.sentence


def test_a_wrong_hash(bench: Bench) -> None:
    place = bench.add(bench.small())
    listed = place / f"{BZ2}.DIGESTS"
    text = listed.read_text()
    hashed = text.split()[-2]
    listed.write_text(text.replace(hashed, "0" * 128))
    bench.mirror.signer.sign(listed)
    failure = bench.fails()
    assert failure.code is Code.DIGEST_MISMATCH
    assert failure.sentence.endswith(f"has the SHA512 {hashed}, but its maker says {'0' * 128}")


def test_a_list_of_hashes_that_somebody_changed(bench: Bench) -> None:
    place = bench.add(bench.small())
    listed = place / f"{BZ2}.DIGESTS"
    listed.write_text(listed.read_text().replace("SHA512", "SHA512 "))
    failure = bench.fails()
    assert failure.code is Code.SIGNATURE_INVALID
    assert f"'{BZ2}.DIGESTS' is not good: it is not what the key" in failure.sentence
    assert bench.mirror.server.paths().count(f"/stable/amd64-usr/{VERSION}/{BZ2}") == 0, "not downloaded yet"


def test_hashes_signed_in_clear_serve_too(bench: Bench) -> None:
    place = bench.add(bench.small())
    (place / f"{BZ2}.DIGESTS.sig").unlink()
    assert bench.make().made
    (place / f"{BZ2}.DIGESTS.asc").unlink()
    made = bench.make(again=True)
    assert "has no signed list of hashes" in made.notes[0]


def test_a_wrong_signature(bench: Bench) -> None:
    place = bench.add(bench.small())
    (place / f"{BZ2}.sig").write_bytes((place / f"{BZ2}.DIGESTS.sig").read_bytes())
    failure = bench.fails()
    assert failure.code is Code.SIGNATURE_INVALID
    key = bench.mirror.signer.subkey[-16:]
    assert failure.sentence == f"the signature of '{BZ2}' is not good: it is not what the key {key} signed"


def test_a_signature_of_somebody_else(bench: Bench) -> None:
    place = bench.add(bench.small())
    stranger = Signer()
    try:
        stranger.sign(place / BZ2)
    finally:
        stranger.close()
    failure = bench.fails()
    assert failure.code is Code.SIGNATURE_INVALID
    assert stranger.subkey[-16:] in failure.sentence and "not among the trusted keys" in failure.sentence


def test_a_release_without_signature(bench: Bench) -> None:
    place = bench.add(bench.small())
    (place / f"{BZ2}.sig").unlink()
    failure = bench.fails()
    assert failure.code is Code.RELEASE_UNKNOWN
    assert "with its signature" in failure.sentence


def garbage(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(OFFSET)
        file.write(b"\xa5" * (24 << 20))


def no_table(disk: Path) -> None:
    disk.write_bytes(b"\xa5" * 100_000)


def two_kernels(tree: Path) -> None:
    (tree / "usr/lib/modules/6.6.61-flatcar/build").mkdir(parents=True)


def no_kernel(tree: Path) -> None:
    (tree / f"usr/lib/modules/{SMALL_KERNEL}/build").rename(tree / "elsewhere")


def other_version(tree: Path) -> None:
    mirrors.write_os_release(tree, "4593.2.4")


@pytest.mark.parametrize(
    ("change", "damage", "number", "label", "fault"),
    [
        pytest.param(None, None, 3, "OEM", "has no partition 9 and none named ROOT", id="no-partition-9"),
        pytest.param(None, no_table, 9, "ROOT", "has no GPT", id="no-gpt"),
        pytest.param(None, garbage, 9, "ROOT", "Bad magic number", id="no-ext4"),
        pytest.param(two_kernels, None, 9, "ROOT", "has the build trees of 2 kernels", id="two-kernels"),
        pytest.param(no_kernel, None, 9, "ROOT", "has the build trees of 0 kernels", id="no-build-tree"),
        pytest.param(other_version, None, 9, "ROOT", "is of 'flatcar 4593.2.4'", id="an-older-release"),
    ],
)
def test_a_signed_disk_image_that_is_none(
    bench: Bench,
    change: Callable[[Path], None] | None,
    damage: Callable[[Path], None] | None,
    number: int,
    label: str,
    fault: str,
) -> None:
    bench.add(bench.small(change=change, damage=damage, number=number, label=label))
    failure = bench.fails()
    assert failure.code is Code.DISK_IMAGE_INVALID
    assert fault in failure.sentence


def test_a_file_that_is_no_bzip2(bench: Bench) -> None:
    place = bench.add(bench.small())
    bench.mirror.add_file(place / BZ2, b"<html>sign in</html>")
    failure = bench.fails()
    assert failure.code is Code.DISK_IMAGE_INVALID
    assert failure.sentence.startswith(f"'{BZ2}' cannot be decompressed: ")


def test_a_kernel_with_a_wrong_signature(bench: Bench) -> None:
    image = bench.place / "kernel"
    image.write_bytes(b"MZ kernel")
    place = bench.add(bench.small(), vmlinuz=image)
    (place / f"{VMLINUZ}.sig").write_bytes((place / f"{BZ2}.sig").read_bytes())
    failure = bench.fails()
    assert failure.code is Code.SIGNATURE_INVALID
    assert f"'{VMLINUZ}'" in failure.sentence


def test_an_engine_that_is_gone(bench: Bench) -> None:
    from nvidiad.image.world.engine import Engine

    bench.add(bench.small())
    with pytest.raises(Failure) as caught:
        make_developer(
            RELEASE,
            REPOSITORY,
            mirrors=feeds.mirror(bench.mirror.url),
            downloads=Downloads(QUICK),
            trust=Keyring([bench.mirror.key]),
            disks=filesystem,
            engine=Engine("/run/no-engine.sock"),
            temporary=bench.temporary,
            tell=bench.told.append,
        )
    assert caught.value.code is Code.ENGINE_UNREACHABLE
    assert bench.mirror.server.asked == [], "asked first, before anything large is downloaded"
