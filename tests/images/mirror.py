# SPDX-License-Identifier: Apache-2.0
"""A mirror of Flatcar on loopback in the true shape: signed files, DIGESTS, disk images, feeds."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.beds.common import cached, debian_tree, digest, require, run_checked
from tests.images.webserver import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.vm.kernels import Kernel

OFFSET = 2 << 20
"""Where partition 9 begins in every developer container, in bytes."""
BZ2 = "flatcar_developer_container.bin.bz2"
PACKAGES = "flatcar_production_image_packages.txt"
VMLINUZ = "flatcar_production_image.vmlinuz"
SMALL_KERNEL = "6.6.60-flatcar"
_LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
_COMPILER = (
    *("gcc", "gcc-12", "make", "binutils", "libc6-dev", "bash", "dash", "coreutils", "sed", "grep", "mawk"),
    *("findutils", "diffutils", "libelf1", "libc-bin", "base-files", "tar", "xz-utils", "perl-base"),
)


class Signer:
    """A key made for a test with gpg, in a home of its own."""

    def __init__(self, *, when: str = "", days: int = 0) -> None:
        require("gnupg", "gpgv")
        # Short: gpg-agent's socket lies in it, whose name may have 107 bytes only.
        self.home = Path(tempfile.mkdtemp(prefix="nvidiad-gpg-", dir="/tmp"))
        expiry = f"{days}d" if days else "never"
        self.gpg(
            "--quick-gen-key", "Test Buildbot <buildbot@test.invalid>", "rsa2048", "cert", "never", when=when
        )
        self.fingerprint = self._fingerprints()[0]
        self.gpg("--quick-add-key", self.fingerprint, "rsa2048", "sign", expiry, when=when)
        self.subkey = self._fingerprints()[1]
        self.key = self.home / "key.asc"
        self.export()

    def export(self) -> None:
        """Write the public keys, as they are now, to `key`."""
        self.key.write_text(self.gpg("--armor", "--export"))

    def sign(self, path: Path, *, when: str = "") -> Path:
        """Write `PATH.sig`, a detached binary signature."""
        signature = path.with_name(f"{path.name}.sig")
        self.gpg("--yes", "--output", str(signature), "--detach-sign", str(path), when=when)
        return signature

    def sign_clear(self, path: Path) -> Path:
        """Write `PATH.asc`, the text with its signature."""
        signed = path.with_name(f"{path.name}.asc")
        self.gpg("--yes", "--output", str(signed), "--clear-sign", str(path))
        return signed

    def gpg(self, *arguments: str, when: str = "", say: str = "") -> str:
        """Run gpg; `when` is the time that it takes for now, as 20200101T000000."""
        command = [
            "gpg",
            "--batch",
            "--quiet",
            "--no-tty",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]
        if when:
            command += ["--faked-system-time", when]
        done = subprocess.run(
            [*command, *arguments],
            input=say,
            capture_output=True,
            text=True,
            check=False,
            env={"GNUPGHOME": str(self.home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End gpg's agent and remove the key."""
        environment = {"GNUPGHOME": str(self.home), "PATH": os.environ["PATH"]}
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False, capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def _fingerprints(self) -> list[str]:
        listed = self.gpg("--with-colons", "--list-keys", "--list-options", "show-unusable-subkeys")
        return [line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:")]


class Mirror:
    """BASE/<channel>/<board>/<version>/FILE as Flatcar's servers have it, served with all its faults.

    with Mirror(tmp_path) as mirror:
        mirror.add_release("stable", "4593.2.5", disk=small_disk(...))
        feeds.mirror(mirror.url); Keyring([mirror.key])
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.signer = Signer()
        self.server = Server(root)
        self._feeds: dict[str, dict[str, object]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Begin to serve; files may be added at any time."""
        self.server.start()
        return self

    def stop(self) -> None:
        """Serve no more, and remove the signing key."""
        self.server.stop()
        self.signer.close()

    @property
    def url(self) -> str:
        """What `--mirror` takes."""
        return self.server.url

    @property
    def key(self) -> Path:
        """The public key that `--key` takes."""
        return self.signer.key

    def add_release(
        self,
        channel: str,
        version: str,
        *,
        disk: Path | None = None,
        vmlinuz: Path | None = None,
        kernel: str = "",
        architectures: Sequence[str] = ("amd64",),
        year: str = "",
        date: str = "2026-08-20",
        in_feed: bool = True,
        current: bool = True,
    ) -> Path:
        """A release with its files; its directory (of the first architecture).

        `kernel` is the plain version that feed and package list tell, `disk` the packed disk image, `year`
        that of a long-term channel. The one that is added last is `current`.
        """
        for architecture in architectures:
            place = self.root / channel / f"{architecture}-usr" / version
            place.mkdir(parents=True, exist_ok=True)
            self._version_txt(place, version)
            package = f"sys-kernel/coreos-kernel-{kernel}-r1::coreos-overlay\n" if kernel else ""
            self.add_file(place / PACKAGES, f"app-arch/xz-utils-5.6.2::portage-stable\n{package}".encode())
            for source, name in ((disk, BZ2), (vmlinuz, VMLINUZ)):
                if source is not None:
                    self.add_file(place / name, source)
            if current:
                link = place.parent / (f"current-{year}" if year else "current")
                link.unlink(missing_ok=True)
                link.symlink_to(version)
        if in_feed:
            self._feed(
                f"{channel}-{year}" if year else channel, channel, version, kernel, architectures, date
            )
        return self.root / channel / f"{architectures[0]}-usr" / version

    def add_file(self, path: Path, content: bytes | Path) -> None:
        """A file with its signature and its signed list of hashes."""
        path.unlink(missing_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        self.signer.sign(path)
        self.list_hashes(path)

    def list_hashes(self, path: Path) -> None:
        """Write FILE.DIGESTS with its signatures, as the file is now."""
        lines = ""
        for kind in ("md5", "sha1", "sha512"):
            with path.open("rb") as file:
                hashed = hashlib.file_digest(file, kind).hexdigest()
            lines += f"# {kind.upper()} HASH\n{hashed}  {path.name}\n"
        listed = path.with_name(f"{path.name}.DIGESTS")
        listed.write_text(lines)
        self.signer.sign(listed)
        self.signer.sign_clear(listed)

    def write_lts_info(self, *lines: str) -> None:
        (self.root / "lts").mkdir(exist_ok=True)
        (self.root / "lts/lts-info").write_text("".join(f"{line}\n" for line in lines))

    def _version_txt(self, place: Path, version: str) -> None:
        numbers = dict(zip(("BUILD", "BRANCH", "PATCH"), version.split("+")[0].split("."), strict=True))
        values = {**numbers, "VERSION": version, "VERSION_ID": version.split("+")[0], "BUILD_ID": '""'}
        values["SDK_VERSION"] = version
        text = "".join(f"FLATCAR_{key}={value}\n" for key, value in values.items())
        self.add_file(place / "version.txt", text.encode())

    def _feed(
        self, feed: str, channel: str, version: str, kernel: str, architectures: Sequence[str], date: str
    ) -> None:
        entry = {
            "channel": channel,
            "architectures": list(architectures),
            "release_date": f"{date} 10:00:00 +0000",
            "major_software": {
                "kernel": [kernel] if kernel else [],
                "docker": ["28.0.4"],
                "systemd": ["257"],
            },
            "release_notes": "Changes since the release before\n",
        }
        document = self._feeds.setdefault(feed, {})
        document[version] = document["current"] = entry
        place = self.root / "releases-json"
        place.mkdir(exist_ok=True)
        (place / f"releases-{feed}.json").write_text(json.dumps(document, indent=1))


# ---------------------------------------------------------------------------------------------------
# Disk images


def small_disk(
    place: Path,
    version: str,
    *,
    kernel: str = SMALL_KERNEL,
    os_id: str = "flatcar",
    number: int = 9,
    label: str = "ROOT",
    change: Callable[[Path], None] | None = None,
    damage: Callable[[Path], None] | None = None,
) -> Path:
    """A packed disk image of a few files, made in a second; `change` gets its tree, `damage` the image."""
    tree = place / "small-tree"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("etc", "usr/lib", "usr/bin", f"usr/lib/modules/{kernel}/build/include"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    write_os_release(tree, version, os_id)
    (tree / f"usr/lib/modules/{kernel}/build/Makefile").write_text("all:\n")
    (tree / "usr/bin/tool").write_text("#!/bin/sh\n")
    (tree / "usr/bin/tool").chmod(0o755)
    (tree / "bin").symlink_to("usr/bin")
    if change is not None:
        change(tree)
    raw = place / "small.bin"
    make_disk(tree, raw, 24, number=number, label=label)
    if damage is not None:
        damage(raw)
    packed = place / f"small-{digest(version, kernel, os_id, number, label)}.bin.bz2"
    packed.write_bytes(bz2.compress(raw.read_bytes(), 1))
    raw.unlink()
    return packed


def full_disk(version: str, kernel: Kernel) -> Path:
    """A packed disk image with a real compiler and a real kernel's build tree; slow, kept in the cache."""
    tree = developer_tree(kernel)

    def build(partial: Path) -> None:
        require("lbzip2")
        raw = partial.with_name(f"{partial.name}.raw")
        whole = partial.with_name(f"{partial.name}.tree")
        shutil.rmtree(whole, ignore_errors=True)
        try:
            run_checked(["cp", "-a", str(tree), str(whole)], "cp")
            write_os_release(whole, version)
            make_disk(whole, raw, 1536)
            with partial.open("wb") as file:
                subprocess.run(["lbzip2", "-1", "-c", str(raw)], stdout=file, check=True)
        finally:
            raw.unlink(missing_ok=True)
            shutil.rmtree(whole, ignore_errors=True)

    return cached("mirror-disk", [version, tree.name], build)


def developer_tree(kernel: Kernel) -> Path:
    """What a developer container has for the compiling of modules: gcc, make, and the kernel's build tree.

    The build tree is one directory with nothing outside of it, as kernel-install-extmod-build makes it and
    Flatcar has it since 4459: Debian's two halves are laid over each other.
    """

    def finish(tree: Path) -> None:
        # Nothing is configured in this variant, so nobody chose the alternatives.
        for name, program in (("awk", "mawk"), ("cc", "gcc")):
            (tree / "usr/bin" / name).symlink_to(program)
        modules = tree / "usr/lib/modules" / kernel.release
        shutil.copytree(kernel.modules / "kernel", modules / "kernel")
        build = modules / "build"
        common = next(kernel.headers.parent.glob("linux-headers-*-common"))
        # Links to kbuild's scripts and tools become what they name.
        run_checked(["cp", "-rL", f"{common}/.", str(build)], "cp of the common headers")
        halves = ["arch", "include", ".config", ".kernelvariables", "Module.symvers"]
        for name in halves:
            run_checked(["cp", "-rL", str(kernel.headers / name), f"{build}/"], "cp of the headers")
        (modules / "source").symlink_to("build")
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            shutil.copy(kernel.modules / name, modules / name)

    return debian_tree(
        f"developer-{kernel.release.replace('+', '-')}",
        "bookworm",
        _COMPILER,
        variant="extract",
        finish=finish,
        salt=[kernel.release, "merged build tree", "awk and cc"],
    )


def make_disk(tree: Path, raw: Path, megabytes: int, *, number: int = 9, label: str = "ROOT") -> None:
    """A GPT disk with an ext4 root at 2 MiB, without loop device and mount."""
    require("fdisk", "e2fsprogs")
    raw.unlink(missing_ok=True)
    with raw.open("wb") as file:
        file.truncate(OFFSET + (megabytes << 20) + (1 << 20))
    line = f"img{number}: start={OFFSET // 512}, size={megabytes * 2048}, type={_LINUX}, name={label}\n"
    script = f"label: gpt\nfirst-lba: 34\n{line}"
    subprocess.run(["/usr/sbin/sfdisk", "--quiet", str(raw)], input=script, text=True, check=True)
    options = ["-q", "-t", "ext4", "-L", "ROOT", "-E", f"offset={OFFSET},root_owner=0:0", "-d", str(tree)]
    run_checked(["/usr/sbin/mke2fs", *options, str(raw), f"{megabytes}m"], "mke2fs")


def write_os_release(tree: Path, version: str, os_id: str = "flatcar") -> None:
    """/usr/lib/os-release as Flatcar has it, with the link in /etc."""
    lines = (
        'NAME="Flatcar Container Linux by Kinvolk"',
        f"ID={os_id}",
        "ID_LIKE=coreos",
        f"VERSION={version}",
        f"VERSION_ID={version.split('+')[0]}",
        "BUILD_ID=",
        f'PRETTY_NAME="Flatcar Container Linux by Kinvolk {version}"',
    )
    place = tree / "usr/lib/os-release"
    place.unlink(missing_ok=True)
    place.write_text("".join(f"{line}\n" for line in lines))
    link = tree / "etc/os-release"
    link.unlink(missing_ok=True)
    link.symlink_to("../usr/lib/os-release")
