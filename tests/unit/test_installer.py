# SPDX-License-Identifier: Apache-2.0
"""The installer of the transport image, run as it is by the shells and tools that images have."""

from __future__ import annotations

import fcntl
import io
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.manifest import FileEntry
from nvidiad.nouns.model import Build
from nvidiad.world.trees import LOCK, Trees
from tests.payload.builder import Fault, payload, spoil
from tests.payload.image import TRANSPORT, base_files, image_context, pack_image
from tests.unit import test_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER = "535.309.01"
KERNEL = "6.1.0-56-cloud-amd64"
BUILD = Build(DRIVER, "3975.2.0", KERNEL)
TREE = f"opt/nvidia/{DRIVER}/3975.2.0"
INSTALL = TRANSPORT / "install"
OK, USAGE, BAD_IMAGE, CANNOT_WRITE, IO_ERROR, BUSY, IN_USE = 0, 64, 65, 73, 74, 75, 77


class Bench:
    """An image and a host's root directory side by side, and one of the shells."""

    def __init__(self, place: Path, shell: str, tools: str) -> None:
        self.image = place / "image"
        self.host = place / "host"
        self.shell = shell
        self.tools = tools
        self.tree = self.image / TREE
        self.target = self.host / TREE
        self.host.mkdir(parents=True)

    def build(self, **more: object) -> Path:
        """Put a payload into the image."""
        shutil.rmtree(self.image, ignore_errors=True)
        return payload(self.image, driver=DRIVER, release=("flatcar", "3975.2.0"), kernel=KERNEL, **more)  # type: ignore[arg-type]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        given = {"PATH": self.tools, "NVIDIAD_ROOTFS": str(self.host), "NVIDIAD_IMAGE": str(self.image)}
        return subprocess.Popen(
            [self.shell, str(INSTALL), *arguments],
            env=given | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, expected: int, *words: str, **environment: str) -> str:
        """Run it to its end, which is this exit code with these words."""
        with self.start(**environment) as process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == expected, said
        assert all(word in said for word in words), said
        return said

    @property
    def trees(self) -> Trees:
        return Trees(self.host / "opt")

    def check(self) -> None:
        """What nvidiad itself thinks of what was installed."""
        self.trees.verify(str(self.target), BUILD)
        assert self.leftovers() == []

    def leftovers(self) -> list[str]:
        return [str(path) for path in self.host.rglob(".*") if path.name != LOCK]


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tools of the BusyBox base image and no others."""
    folder = tmp_path_factory.mktemp("busybox")
    for name, content in base_files().items():
        if name.startswith("bin/"):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
                path.chmod(0o755)
    return folder / "bin"


@pytest.fixture(params=["sh", "busybox"])
def bench(request: pytest.FixtureRequest, busybox: Path) -> Iterator[Bench]:
    # In memory where there is such a place: a disk that others keep busy takes seconds to sync.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        if request.param == "busybox":
            made = Bench(Path(place), str(busybox / "sh"), str(busybox))
        else:
            made = Bench(Path(place), shutil.which("dash") or "sh", os.environ["PATH"])
        made.build()
        yield made


def test_install_and_again(bench: Bench) -> None:
    said = bench.run(OK, "copying driver 535.309.01", "verifying", "syncing", f"installed: '/{TREE}'")
    assert len(said.splitlines()) == 4
    bench.check()
    (tree,) = bench.trees.list()
    assert tree.build == BUILD
    assert (bench.target / "bin/nvidia-modprobe").stat().st_mode & 0o7777 == 0o4755
    before = bench.target.stat()
    said = bench.run(OK, f"already installed: '/{TREE}'")
    assert len(said.splitlines()) == 1
    assert bench.target.stat().st_ino == before.st_ino


def test_python_and_shell_agree(bench: Bench) -> None:
    """Each finds complete what the other installed."""
    bench.run(OK)
    path = bench.trees.list()[0].path
    inode = Path(path).stat().st_ino
    bench.trees.install(bench.tree, lambda _: None)
    assert Path(path).stat().st_ino == inode
    shutil.rmtree(bench.host / "opt")
    bench.trees.install(bench.tree, lambda _: None)
    bench.run(OK, "already installed")


def test_modes_come_from_the_manifest(bench: Bench) -> None:
    for path in bench.tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700)
    before = os.umask(0o077)
    try:
        bench.run(OK)
    finally:
        os.umask(before)
    bench.check()
    assert (bench.host / "opt/nvidia").stat().st_mode & 0o777 == 0o755


def test_another_root(bench: Bench) -> None:
    bench.run(OK, "installed: '/var/opt/nvidia/", NVIDIAD_ROOT="/var/opt/")
    Trees(bench.host / "var/opt").verify(str(bench.host / "var" / TREE), BUILD)
    bench.run(USAGE, "not absolute", NVIDIAD_ROOT="opt")


@pytest.mark.parametrize("target", ["/mnt/data", "mnt/data", "../mnt/data", "/mnt/hop"])
def test_links_are_those_of_the_host(bench: Bench, target: str) -> None:
    """An absolute link on the host starts at the host's root directory, not at the container's."""
    (bench.host / "mnt/data").mkdir(parents=True)
    (bench.host / "mnt/hop").symlink_to("/opt/../mnt/./data")
    (bench.host / "opt").symlink_to(target)
    if target == "/mnt/hop":
        (bench.host / "mnt/hop").unlink()
        (bench.host / "mnt/hop").symlink_to("/srv/../mnt/./data/")
    bench.run(OK)
    Trees(bench.host / "mnt/data").verify(str(bench.host / "mnt/data" / TREE.removeprefix("opt/")), BUILD)


def test_links_that_loop(bench: Bench) -> None:
    (bench.host / "opt").symlink_to("/srv")
    (bench.host / "srv").symlink_to("opt")
    bench.run(CANNOT_WRITE, "too many symbolic links")


def test_called_wrongly(bench: Bench) -> None:
    bench.run(USAGE, "-v /:/rootfs", NVIDIAD_ROOTFS=str(bench.host / "nothing"))
    with bench.start("--help") as process:
        assert process.communicate()[0].startswith("nvidiad install: no arguments are expected")
    assert process.returncode == USAGE


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.WRONG_HASH, "lib64/libcuda.so.535.309.01"),
        (Fault.MISSING_FILE, "lib64/libcuda.so.535.309.01 is missing"),
        (Fault.EXTRA_FILE, "lib64/libextra.so.1 is not in the manifest"),
        (Fault.LEAVES_TREE, "../../../../etc/profile.d/evil.sh"),
        (Fault.LINK_LEAVES_TREE, "this link leaves the tree: lib64/libevil.so.1"),
        (
            Fault.WRONG_OS,
            "is for '/opt/nvidia/535.309.01/9999.9.9', but it is in '/opt/nvidia/535.309.01/3975.2.0'",
        ),
        (Fault.WRONG_DRIVER, "is for '/opt/nvidia/999.99.99/3975.2.0'"),
        (Fault.NO_MANIFEST, "no /opt/nvidia/DRIVER/OS-VERSION/manifest.json"),
        (Fault.BROKEN_MANIFEST, "manifest of the image is refused: line"),
        (Fault.NOT_A_DRIVER, "no /opt/nvidia/DRIVER/OS-VERSION/manifest.json"),
    ],
)
def test_bad_images(bench: Bench, fault: Fault, words: str) -> None:
    spoil(bench.tree, fault)
    bench.run(BAD_IMAGE, words)
    assert bench.trees.list() == ()
    assert bench.leftovers() == []


def test_several_trees(bench: Bench) -> None:
    payload(bench.image, driver=DRIVER, release=("flatcar", "1"), kernel=KERNEL)
    bench.run(BAD_IMAGE, "2 trees instead of one")


def test_names_that_lie(bench: Bench) -> None:
    """A name with a newline cannot pass for an entry."""
    size = (bench.tree / "bin/nvidia-smi").stat().st_size
    (bench.tree / "bin/nvidia-smi").rename(bench.tree / f"bin/x\n81ed {size} 0 .")
    bench.run(BAD_IMAGE, "bin/x is not in the manifest")
    bench.build()
    (bench.tree / "bin/nvidia-smi").unlink()
    (bench.tree / f"bin/nvidia-smi\n81ed {size} 0 .").write_bytes(b"x" * size)
    bench.run(BAD_IMAGE)
    assert bench.trees.list() == ()


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            *("content", "longer", "mode", "directory mode", "extra", "link target"),
            *("owner", "directory owner", "tree mode", "tree owner", "manifest mode", "manifest owner"),
        }
    ),
)
def test_damaged_trees_are_replaced(bench: Bench, name: str) -> None:
    bench.run(OK)
    match name:
        case "content":
            spoil(bench.target, Fault.WRONG_HASH)
        case "longer":
            (bench.target / "bin/nvidia-smi").write_text("x")
        case "mode":
            (bench.target / "bin/nvidia-smi").chmod(0o4755)
        case "directory mode":
            (bench.target / "bin").chmod(0o777)
        case "tree mode":
            bench.target.chmod(0o777)
        case "manifest mode":
            (bench.target / "manifest.json").chmod(0o666)
        case "owner" | "directory owner" | "tree owner" | "manifest owner":
            if os.geteuid() != 0:
                pytest.skip("only root can give files away")
            place = {"owner": "bin/nvidia-smi", "directory owner": "bin", "tree owner": "."}
            os.chown(bench.target / place.get(name, "manifest.json"), 1234, 1234)
        case "extra":
            spoil(bench.target, Fault.EXTRA_FILE)
        case "link target":
            (bench.target / "lib64/libcuda.so.1").unlink()
            (bench.target / "lib64/libcuda.so.1").symlink_to("libcuda.so")
    bench.run(OK, f"replacing '/{TREE}': it is damaged: ", "installed")
    bench.check()


def test_another_tree_in_the_place(bench: Bench) -> None:
    bench.run(OK)
    bench.build(compiler="another compiler")
    (bench.host / "sys/module/nvidia").mkdir(parents=True)
    link = bench.host / "opt/nvidia/current"
    # The driver is loaded, but from elsewhere.
    link.symlink_to(f"{DRIVER}/3602.2.0")
    bench.run(OK, "replacing", "it has another manifest")
    bench.check()
    assert bench.trees.manifest(str(bench.target)).compiler == "another compiler"
    link.unlink()
    link.symlink_to(f"{DRIVER}/3975.2.0")
    bench.run(OK, "already installed")
    bench.build(compiler="a third")
    bench.run(IN_USE, "is the tree of the loaded driver")
    bench.check()
    assert bench.trees.manifest(str(bench.target)).compiler == "another compiler"
    (bench.host / "sys/module/nvidia").rmdir()
    bench.run(OK)
    assert bench.trees.manifest(str(bench.target)).compiler == "a third"


@pytest.mark.parametrize(
    "kind", ["empty", "no manifest", "broken manifest", "other identity", "link", "file"]
)
def test_other_owners_stay_untouched(bench: Bench, tmp_path: Path, kind: str) -> None:
    bench.target.parent.mkdir(parents=True)
    match kind:
        case "empty":
            bench.target.mkdir()
        case "no manifest":
            shutil.copytree(bench.tree, bench.target, symlinks=True)
            (bench.target / "manifest.json").unlink()
        case "broken manifest":
            shutil.copytree(bench.tree, bench.target, symlinks=True)
            (bench.target / "manifest.json").write_text("{}")
        case "other identity":
            other = payload(tmp_path / "x", driver=DRIVER, release=("flatcar", "1"), kernel=KERNEL)
            shutil.copytree(other, bench.target, symlinks=True)
        case "link":
            bench.target.symlink_to("/etc")
        case "file":
            bench.target.write_text("mine\n")
    before = sorted(str(path) for path in bench.target.rglob("*"))
    bench.run(CANNOT_WRITE, f"'/{TREE}' is there and is not a tree of nvidiad: it stays untouched")
    assert sorted(str(path) for path in bench.target.rglob("*")) == before
    assert os.path.lexists(bench.target)


def test_a_driver_directory_of_another_owner(bench: Bench, tmp_path: Path) -> None:
    bench.target.parent.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    bench.target.parent.symlink_to(tmp_path / "elsewhere")
    bench.run(CANNOT_WRITE, "belongs to someone else")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_only_one_at_a_time(bench: Bench) -> None:
    bench.run(OK)
    with (bench.host / "opt/nvidia" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bench.run(BUSY, "another installation holds '/opt/nvidia/.lock'")
    bench.run(OK)
    assert (bench.host / "opt/nvidia" / LOCK).stat().st_mode & 0o777 == 0o600


def test_partials_are_swept(bench: Bench) -> None:
    for name in (".3975.2.0.partial", ".3975.2.0.old.partial", ".1.partial"):
        (bench.target.parent / name / "lib64").mkdir(parents=True)
        (bench.target.parent / name / "lib64/link").symlink_to(bench.image)
    bench.run(OK)
    bench.check()
    assert bench.tree.is_dir()


def test_a_tree_moved_aside_for_one_that_never_came_is_put_back(bench: Bench) -> None:
    bench.run(OK)
    before = bench.target.stat().st_ino
    bench.target.rename(bench.target.with_name(".3975.2.0.old.partial"))
    bench.run(OK, "put back: '/opt/nvidia/535.309.01/3975.2.0'")
    assert bench.target.stat().st_ino == before
    bench.check()


def test_the_tree_of_another_os_that_was_moved_aside_is_put_back_too(bench: Bench) -> None:
    bench.run(OK)
    aside = bench.target.with_name(".3975.2.0.old.partial")
    bench.target.rename(aside)
    shutil.rmtree(bench.image)
    payload(bench.image, driver=DRIVER, release=("flatcar", "4081.2.0"), kernel=KERNEL)
    bench.run(OK, "put back: '/opt/nvidia/535.309.01/3975.2.0'")
    assert {tree.build.os_version for tree in bench.trees.list()} == {"3975.2.0", "4081.2.0"}
    bench.check()


def test_a_damaged_tree_moved_aside_is_not(bench: Bench) -> None:
    bench.run(OK)
    spoil(bench.target, Fault.WRONG_HASH)
    bench.target.rename(bench.target.with_name(".3975.2.0.old.partial"))
    assert "put back" not in bench.run(OK)
    bench.check()


def test_no_room(bench: Bench) -> None:
    (bench.host / "opt").mkdir()
    script = f'mount -t tmpfs -o "$1" x {bench.host}/opt && exec {bench.shell} {INSTALL}'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, "mount -t tmpfs x /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    # The mounting needs the machine's tools, the installer gets its own by name of the shell only.
    given = {**os.environ, "NVIDIAD_ROOTFS": str(bench.host), "NVIDIAD_IMAGE": str(bench.image)}

    def run(options: str) -> tuple[int, str]:
        asked = [*command, script, "sh", options]
        done = subprocess.run(asked, capture_output=True, text=True, env=given, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = run("size=8k")
    assert code == CANNOT_WRITE, said
    assert re.search(r"not enough|enough room: \d+ bytes are needed, \d+ are free", said)
    code, said = run("ro")
    assert code == CANNOT_WRITE, said
    assert "Read-only file system" in said
    # Blocks enough, but not for so many files: only the copying finds out.
    code, said = run("size=8m,nr_inodes=12")
    assert code == CANNOT_WRITE, said
    assert "No space left" in said
    code, said = run("size=8m")
    assert code == OK, said


def test_a_tool_that_is_missing(bench: Bench, tmp_path: Path, busybox: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("awk", "chmod", "cp", "mkdir", "mv", "readlink", "rm", "sha256sum", "stat", "sync", "wc"):
        (folder / name).symlink_to(busybox / "busybox")
    bench.run(USAGE, "has no 'flock'", PATH=str(folder))


# ---------------------------------------------------------------------------------------------------
# Killed at every instant.


def test_killed_before_every_command(bench: Bench, tmp_path: Path) -> None:
    """Each tool that changes something is wrapped: before the n-th call it kills the installer."""
    if bench.tools != os.environ["PATH"]:
        pytest.skip("BusyBox calls its own applets whatever PATH says")
    wrappers = tmp_path / "wrappers"
    wrappers.mkdir()
    counter = tmp_path / "count"
    for name in ("chmod", "cp", "flock", "mkdir", "mv", "rm", "sha256sum", "sync"):
        real = shutil.which(name, path=bench.tools)
        assert real is not None
        (wrappers / name).write_text(
            f"#!{bench.shell}\nread n <{counter}\necho $((n + 1)) >{counter}\n"
            f'[ "$n" -lt "$KILL_AT" ] || kill -9 0\nexec {real} "$@"\n'
        )
        (wrappers / name).chmod(0o755)
    # A tree that differs is there: it is replaced, the longest way there is.
    other = tmp_path / "other"
    bench.run(OK)
    shutil.copytree(bench.host / "opt", other, symlinks=True)
    bench.build(compiler="another compiler")
    killed = 0
    for number in range(1, 200):
        shutil.rmtree(bench.host / "opt", ignore_errors=True)
        shutil.copytree(other, bench.host / "opt", symlinks=True)
        counter.write_text("1\n")
        with bench.start(PATH=f"{wrappers}:{bench.tools}", KILL_AT=str(number)) as process:
            said, _ = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        killed += 1
        for tree in bench.trees.list():
            bench.trees.verify(tree.path, BUILD)
        bench.run(OK)
        bench.check()
        assert bench.trees.manifest(str(bench.target)).compiler == "another compiler"
    assert killed > 10


def test_killed_at_random_instants(bench: Bench) -> None:
    chance = random.Random(20260401)  # noqa: S311
    bench.build(bulk=4 << 20)
    killed = 0
    for _ in range(15):
        shutil.rmtree(bench.host / "opt", ignore_errors=True)
        process = bench.start()
        try:
            process.wait(chance.random() * 0.15)
        except subprocess.TimeoutExpired:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        for tree in bench.trees.list():
            bench.trees.verify(tree.path, BUILD)
        bench.run(OK)
        bench.check()
    assert killed > 0


# ---------------------------------------------------------------------------------------------------
# The reader of manifests in awk agrees with the one in Python.

READER = re.search(r"^read_manifest\(\) \{\n.*?^\}\n", INSTALL.read_text(), re.MULTILINE | re.DOTALL)
# What the shell has no use for, it reads as far as the form goes.
UNREAD = ("'compiler'", "'pci' holds")


def read(bench: Bench, text: str) -> tuple[int, list[str]]:
    assert READER is not None
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
        file.flush()
        script = f'LC_ALL=C; export LC_ALL\n{READER[0]}read_manifest "$1"'
        command = [bench.shell, "-c", script, "sh", file.name]
        given = {"PATH": bench.tools}
        done = subprocess.run(
            command, capture_output=True, text=True, env=given, check=False, errors="replace"
        )
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout.splitlines()


def facts(manifest: manifests.Manifest) -> set[str]:
    found = {f"build\t{manifest.driver}\t{manifest.os_version}\t{manifest.kernel}"}
    found |= {f"dir\t{path}" for path in manifest.directories()}
    for entry in manifest.entries:
        if isinstance(entry, FileEntry):
            found.add(f"file\t{entry.path}\t{entry.mode:04o}\t{entry.size}\t{entry.sha256}")
        else:
            found.add(f"link\t{entry.path}\t{entry.target}")
    return found


def test_reader_reads(bench: Bench) -> None:
    text = manifests.render(test_manifest.GOOD)
    code, lines = read(bench, text)
    assert code == 0
    assert lines[0].startswith("build\t")
    assert lines[-1] == f"bytes\t{len(text)}\t{test_manifest.GOOD.size}"
    assert set(lines[:-1]) == facts(test_manifest.GOOD)


def test_reader_refuses_what_python_refuses(bench: Bench) -> None:
    wrong = []
    for old, new, reason in test_manifest.REFUSED:
        code, lines = read(bench, test_manifest.TEXT.replace(old, new, 1))
        if code == 0 and not any(word in reason for word in UNREAD):
            wrong.append(reason)
        assert code == 0 or lines[-1].startswith("error\t"), lines
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        test_manifest.TEXT.replace("\n", "\r\n"),
        test_manifest.TEXT.replace(", ", ","),
        test_manifest.TEXT.replace("},\n{", "}, {"),
        test_manifest.TEXT.replace("},\n", "}\n"),
        test_manifest.TEXT.replace("\n]}", ",\n]}"),
        test_manifest.TEXT + "\n",
        test_manifest.TEXT + "{}\n",
        test_manifest.TEXT.replace("]}\n", ""),
        test_manifest.TEXT.replace('"files": [', '"files": [ '),
        " " + test_manifest.TEXT,
    ],
)
def test_reader_refuses_any_other_form(bench: Bench, text: str) -> None:
    assert text != test_manifest.TEXT
    assert read(bench, text)[0] != 0


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(test_manifest.made)
def test_reader_reads_anything(bench: Bench, manifest: manifests.Manifest) -> None:
    text = manifests.render(manifest)
    code, lines = read(bench, text)
    assert code == 0, (text, lines)
    assert set(lines[:-1]) == facts(manifest)
    assert lines[-1] == f"bytes\t{len(text)}\t{manifest.size}"


# ---------------------------------------------------------------------------------------------------
# The image.


def unpack(archive: bytes, place: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        for name in sorted(member.name for member in outer if member.name.startswith("layer")):
            layer = outer.extractfile(name)
            assert layer is not None
            with tarfile.open(fileobj=io.BytesIO(layer.read())) as inner:
                inner.extractall(place, filter="fully_trusted")  # noqa: S202


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its root directory")
def test_the_packed_image_installs(tmp_path: Path) -> None:
    """With nothing but what is in the image, and the host mounted where docker mounts it."""
    tree = payload(tmp_path / "p", driver=DRIVER, release=("flatcar", "3975.2.0"), kernel=KERNEL)
    root = tmp_path / "root"
    unpack(pack_image(tree, "registry.example/nvidia-driver:x"), root)
    command = [shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin:/bin") or "", str(root), "/install"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == USAGE, done.stderr
    (root / "rootfs").mkdir()
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    for words in ("installed", "already installed"):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == OK, done.stderr
        assert words in done.stdout
    Trees(root / "rootfs/opt").verify(str(root / "rootfs" / TREE), BUILD)


def test_the_build_context(tmp_path: Path) -> None:
    tree = payload(tmp_path / "p", driver=DRIVER, release=("flatcar", "3975.2.0"), kernel=KERNEL)
    context = image_context(tree, tmp_path / "context")
    assert {path.name for path in context.iterdir()} == {
        "Dockerfile",
        "install",
        "opt",
        "base",
        ".dockerignore",
        "transport.tar",
    }
    Trees(tmp_path).verify(str(context / TREE), BUILD)


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck on this machine")
    subprocess.run(["shellcheck", "--shell=sh", str(INSTALL)], check=True)


def test_lines_fit() -> None:
    assert [line for line in INSTALL.read_text().splitlines() if len(line) > 120] == []
