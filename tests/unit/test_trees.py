# SPDX-License-Identifier: Apache-2.0
"""Trees on a real disk: complete and verified or not there, wherever the power goes off."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Build, Flavour
from nvidiad.nouns.value import replace
from nvidiad.world import files
from nvidiad.world.trees import LOCK, Trees
from tests.payload.builder import Fault, entries, payload, spoil, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvidiad.nouns.model import Progress

DRIVER = "535.309.01"
KERNEL = "6.1.0-56-cloud-amd64"
BUILD = Build(DRIVER, "3975.2.0", KERNEL)
CHECKOUT = Path(__file__).resolve().parents[2]


def quiet(_: Progress) -> None:
    """Nobody listens."""


def source(place: Path, os_version: str = "3975.2.0", **more: str) -> Path:
    return payload(place, driver=DRIVER, release=("flatcar", os_version), kernel=KERNEL, **more)  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return source(tmp_path / "source")


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "opt")


def refused(code: Code, *words: str, doing: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        doing()
    assert caught.value.code is code, caught.value.sentence
    assert all(word in caught.value.sentence for word in words), caught.value.sentence
    return caught.value


def leftovers(root: Path) -> list[str]:
    """What stands in the way of whoever looks: hidden names other than the lock."""
    return [str(path) for path in root.rglob(".*") if path.name != LOCK]


# ---------------------------------------------------------------------------------------------------
# Installing.


def test_install(trees: Trees, tree: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    assert trees.list() == ()
    installed = trees.install(tree, told.append)
    assert installed.path == str(tmp_path / "opt/nvidia/535.309.01/3975.2.0")
    assert installed.build == BUILD
    assert installed.flavour is Flavour.OPEN
    assert installed.firmware
    assert installed.libraries == (
        *("libcuda.so.1", "libnvidia-cfg.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1"),
    )
    assert trees.list() == (installed,)
    trees.verify(installed.path, BUILD)
    assert leftovers(trees.root) == []
    total = trees.manifest(installed.path).size
    assert {progress.total for progress in told} == {total}
    assert told[-1].done == total
    assert (Path(installed.path) / "bin/nvidia-modprobe").stat().st_mode & 0o7777 == 0o4755


def test_install_whatever_the_umask(trees: Trees, tree: Path) -> None:
    before = os.umask(0o077)
    try:
        installed = trees.install(tree, quiet)
    finally:
        os.umask(before)
    trees.verify(installed.path, BUILD)
    for path in [trees.root, *trees.root.rglob("*")]:
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o755, path


def test_install_again_changes_nothing(trees: Trees, tree: Path) -> None:
    first = trees.install(tree, quiet)
    before = Path(first.path).stat()
    told: list[Progress] = []
    assert trees.install(tree, told.append) == first
    assert Path(first.path).stat().st_ino == before.st_ino
    assert [progress.detail for progress in told] == [f"'{first.path}' is there already"]


def test_install_repairs(trees: Trees, tree: Path) -> None:
    installed = trees.install(tree, quiet)
    spoil(Path(installed.path), Fault.WRONG_HASH)
    refused(Code.TREE_INVALID, "libcuda", doing=lambda: trees.verify(installed.path, BUILD))
    trees.install(tree, quiet)
    trees.verify(installed.path, BUILD)
    assert leftovers(trees.root) == []


def test_install_without_exchange(trees: Trees, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = trees.install(tree, quiet)
    spoil(Path(installed.path), Fault.WRONG_HASH)
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    trees.install(tree, quiet)
    trees.verify(installed.path, BUILD)
    assert leftovers(trees.root) == []


def test_install_removes_what_a_killed_one_left(trees: Trees, tree: Path) -> None:
    place = trees.root / "nvidia" / DRIVER
    for name in (".3975.2.0.partial", ".3874.0.0.partial", ".3975.2.0.old.partial"):
        (place / name / "lib64").mkdir(parents=True)
    trees.install(tree, quiet)
    assert [path.name for path in place.iterdir()] == ["3975.2.0"]


def test_a_tree_moved_aside_for_one_that_never_came_is_put_back(trees: Trees, tree: Path) -> None:
    """Killed between the two renames that replace a tree where names cannot be exchanged."""
    installed = Path(trees.install(tree, quiet).path)
    other = trees.install(source(tree.parent / "other", "3602.2.0"), quiet)
    installed.rename(installed.with_name(".3975.2.0.old.partial"))
    trees.remove(other.path)
    trees.verify(str(installed), BUILD)
    assert leftovers(trees.root) == []


@pytest.mark.parametrize("why", ["damaged", "of another place", "not a tree"])
def test_nothing_else_is_put_back(trees: Trees, tree: Path, why: str) -> None:
    installed = Path(trees.install(tree, quiet).path)
    other = trees.install(source(tree.parent / "other", "3602.2.0"), quiet)
    if why == "damaged":
        spoil(installed, Fault.WRONG_HASH)
    if why == "not a tree":
        (installed / "manifest.json").unlink()
    name = ".3874.0.0.old.partial" if why == "of another place" else ".3975.2.0.old.partial"
    installed.rename(installed.with_name(name))
    trees.remove(other.path)
    assert list(trees.root.glob("nvidia/*/*")) == []


def test_install_replaces_no_tree_in_use(tree: Path, tmp_path: Path) -> None:
    loaded = False
    trees = Trees(tmp_path / "opt", loaded=lambda: loaded)
    installed = trees.install(tree, quiet)
    trees.select(installed.path)
    other = source(tmp_path / "other", compiler="another compiler")
    loaded = True
    assert trees.install(tree, quiet) == installed
    refused(Code.MODULE_IN_USE, installed.path, doing=lambda: trees.install(other, quiet))
    trees.verify(installed.path, BUILD)
    assert trees.manifest(installed.path).compiler != "another compiler"
    loaded = False
    trees.install(other, quiet)
    assert trees.manifest(installed.path).compiler == "another compiler"


@pytest.mark.parametrize(
    ("fault", "code", "word"),
    [
        (Fault.WRONG_HASH, Code.TREE_INVALID, "libcuda.so.535.309.01' has sha256"),
        (Fault.MISSING_FILE, Code.TREE_INVALID, "libcuda.so.535.309.01' is missing"),
        (Fault.EXTRA_FILE, Code.TREE_INVALID, "'lib64/libextra.so.1' is not in the manifest"),
        (Fault.LEAVES_TREE, Code.MANIFEST_INVALID, "../../../../etc/profile.d/evil.sh"),
        (Fault.LINK_LEAVES_TREE, Code.MANIFEST_INVALID, "leaves the tree"),
        (Fault.NO_MANIFEST, Code.TREE_MISSING, "manifest.json"),
        (Fault.BROKEN_MANIFEST, Code.MANIFEST_INVALID, "not JSON"),
        (Fault.NOT_A_DRIVER, Code.TREE_MISSING, "manifest.json"),
    ],
)
def test_install_refuses(trees: Trees, tree: Path, fault: Fault, code: Code, word: str) -> None:
    spoil(tree, fault)
    refused(code, word, doing=lambda: trees.install(tree, quiet))
    assert trees.list() == ()
    assert leftovers(trees.root) == []


@pytest.mark.parametrize(
    "kind", ["empty", "no manifest", "broken manifest", "other identity", "link", "file"]
)
def test_other_owners_stay_untouched(trees: Trees, tree: Path, tmp_path: Path, kind: str) -> None:
    place = trees.root / "nvidia" / DRIVER / "3975.2.0"
    place.parent.mkdir(parents=True)
    match kind:
        case "empty":
            place.mkdir()
        case "no manifest":
            shutil.copytree(spoil(tree, Fault.NO_MANIFEST), place, symlinks=True)
        case "broken manifest":
            shutil.copytree(spoil(tree, Fault.BROKEN_MANIFEST), place, symlinks=True)
        case "other identity":
            shutil.copytree(source(tmp_path / "x", "3602.2.0"), place, symlinks=True)
        case "link":
            place.symlink_to(tree)
        case "file":
            place.write_text("mine\n")
    before = sorted(str(path) for path in place.rglob("*"))
    assert trees.list() == ()
    good = source(tmp_path / "good")
    refused(Code.OTHER_OWNER, str(place), doing=lambda: trees.install(good, quiet))
    refused(Code.TREE_MISSING, str(place), doing=lambda: trees.select(str(place)))
    refused(Code.TREE_MISSING, str(place), doing=lambda: trees.remove(str(place)))
    assert sorted(str(path) for path in place.rglob("*")) == before
    assert os.path.lexists(place)


def test_a_driver_directory_of_another_owner(trees: Trees, tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (trees.root / "nvidia").mkdir(parents=True)
    (trees.root / "nvidia" / DRIVER).symlink_to(elsewhere)
    refused(Code.OTHER_OWNER, DRIVER, doing=lambda: trees.install(tree, quiet))
    assert list(elsewhere.iterdir()) == []


def test_only_one_at_a_time(trees: Trees, tree: Path) -> None:
    installed = trees.install(tree, quiet)
    with (trees.root / "nvidia" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failure = refused(Code.INSTALL_BUSY, LOCK, doing=lambda: trees.install(tree, quiet))
        assert failure.retry
        refused(Code.INSTALL_BUSY, LOCK, doing=lambda: trees.remove(installed.path))
    trees.install(tree, quiet)


@pytest.mark.parametrize(("field", "what"), [(4, "bytes"), (7, "inodes")], ids=["bytes", "inodes"])
def test_no_room_is_said_before(
    trees: Trees, tree: Path, monkeypatch: pytest.MonkeyPatch, field: int, what: str
) -> None:
    real = os.statvfs

    def full(path: Path) -> os.statvfs_result:
        found = list(real(path))
        found[field] = 3
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", full)
    free = 3 * real(tree).f_frsize if what == "bytes" else 3
    words = (f" {what} in ", f"{free} are free")
    failure = refused(Code.DISK_FULL, *words, doing=lambda: trees.install(tree, quiet))
    assert failure.retry
    assert leftovers(trees.root) == []


@pytest.mark.parametrize(
    ("number", "code", "retry"),
    [
        (errno.ENOSPC, Code.DISK_FULL, True),
        (errno.EDQUOT, Code.DISK_FULL, True),
        (errno.EROFS, Code.READ_ONLY, False),
        (errno.EIO, Code.IMAGE_FAILED, True),
    ],
)
def test_errors_while_writing(
    trees: Trees, tree: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: Code, *, retry: bool
) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/opt/x")

    monkeypatch.setattr(files, "fsync_tree", failing)
    failure = refused(code, os.strerror(number), "/opt/x", doing=lambda: trees.install(tree, quiet))
    assert failure.retry is retry
    assert leftovers(trees.root) == []
    assert trees.list() == ()


def in_namespace(commands: str) -> str:
    """What commands say that mount something of their own."""
    probe = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*probe, "mount -t tmpfs x /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    done = subprocess.run([*probe, commands], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("options", "code"), [("size=8k", "disk-full"), ("ro", "read-only")])
def test_real_full_and_read_only_disks(tree: Path, tmp_path: Path, options: str, code: str) -> None:
    (tmp_path / "opt").mkdir()
    script = f"""
from pathlib import Path
from nvidiad.nouns.errors import Failure
from nvidiad.world.trees import Trees
try:
    Trees(Path({str(tmp_path / "opt")!r})).install(Path({str(tree)!r}), lambda _: None)
except Failure as failure:
    print(failure.code)
"""
    (tmp_path / "script.py").write_text(script)
    mount = f"mount -t tmpfs -o {options} x {tmp_path}/opt"
    said = in_namespace(f"{mount} && PYTHONPATH=. {sys.executable} {tmp_path}/script.py")
    assert said.strip() == code


# ---------------------------------------------------------------------------------------------------
# Looking.


def test_list_shows_complete_trees_only(trees: Trees, tmp_path: Path) -> None:
    for os_version in ("3975.2.0", "3602.2.0"):
        trees.install(source(tmp_path / os_version, os_version), quiet)
    bundle = trees.root / "nvidia"
    (bundle / "current").symlink_to(f"{DRIVER}/3975.2.0")
    shutil.copytree(bundle / DRIVER / "3975.2.0", bundle / DRIVER / ".3975.2.0.partial", symlinks=True)
    (bundle / DRIVER / "notes.txt").write_text("someone's\n")
    (bundle / "README").write_text("someone's\n")
    (bundle / "535.1/3975.2.0").mkdir(parents=True)
    assert [tree.build.os_version for tree in trees.list()] == ["3602.2.0", "3975.2.0"]
    assert Trees(tmp_path / "nowhere").list() == ()


def test_list_sees_changes(trees: Trees, tree: Path, tmp_path: Path) -> None:
    installed = trees.install(tree, quiet)
    assert trees.list() == (installed,)
    other = source(tmp_path / "other", flavour="proprietary")
    trees.install(other, quiet)
    assert [each.flavour for each in trees.list()] == [Flavour.PROPRIETARY]
    (Path(installed.path) / "manifest.json").write_text("{}")
    assert trees.list() == ()


def test_current(trees: Trees, tmp_path: Path) -> None:
    assert trees.current() is None
    first = trees.install(source(tmp_path / "a"), quiet)
    second = trees.install(source(tmp_path / "b", "3602.2.0"), quiet)
    link = trees.root / "nvidia/current"
    for each in (first, second, second, first):
        trees.select(each.path)
        assert trees.current() == each.path
        assert not link.readlink().is_absolute()
    refused(Code.INTERNAL, "is current", doing=lambda: trees.remove(first.path))
    link.unlink()
    link.symlink_to("gone")
    assert trees.current() is None
    link.unlink()
    link.symlink_to(tmp_path / "a")
    assert trees.current() == str(tmp_path / "a")
    link.unlink()
    link.mkdir()
    assert trees.current() is None
    refused(Code.OTHER_OWNER, str(link), doing=lambda: trees.select(first.path))
    assert link.is_dir()


def test_a_root_behind_a_link(tmp_path: Path, tree: Path) -> None:
    """/opt is a link to /var/opt on some hosts."""
    (tmp_path / "var/opt").mkdir(parents=True)
    (tmp_path / "opt").symlink_to("var/opt")
    trees = Trees(tmp_path / "opt")
    installed = trees.install(tree, quiet)
    trees.select(installed.path)
    assert trees.current() == installed.path == trees.list()[0].path


def test_select_wants_a_complete_tree(trees: Trees, tree: Path) -> None:
    installed = trees.install(tree, quiet)
    trees.select(installed.path)
    nowhere = str(trees.root / "nvidia/535.309.01/9999")
    for wrong in (nowhere, str(tree), str(trees.root), f"{installed.path}/../../../x"):
        refused(Code.TREE_MISSING, wrong, doing=lambda wrong=wrong: trees.select(wrong))  # type: ignore[misc]
    assert trees.current() == installed.path


def test_remove(trees: Trees, tmp_path: Path) -> None:
    first = trees.install(source(tmp_path / "a"), quiet)
    second = trees.install(source(tmp_path / "b", "3602.2.0"), quiet)
    trees.remove(first.path)
    assert trees.list() == (second,)
    trees.remove(second.path)
    assert list((trees.root / "nvidia").iterdir()) == [trees.root / "nvidia" / LOCK]
    refused(Code.TREE_MISSING, first.path, doing=lambda: trees.remove(first.path))


def test_remove_follows_no_link(trees: Trees, tree: Path, tmp_path: Path) -> None:
    installed = trees.install(tree, quiet)
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("mine\n")
    (Path(installed.path) / "share/out").symlink_to(keep)
    trees.remove(installed.path)
    assert (keep / "file").read_text() == "mine\n"


# ---------------------------------------------------------------------------------------------------
# Verifying.


def put(path: Path, data: bytes, mode: int = 0o755) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def swap(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def move(path: Path, target: str) -> None:
    path.rename(path.resolve().parent / target)
    path.symlink_to(target)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda t: spoil(t, Fault.WRONG_HASH), "libcuda.so.535.309.01' has sha256"),
    "missing": (lambda t: (t / "bin/nvidia-smi").unlink(), "'bin/nvidia-smi' is missing"),
    "longer": (lambda t: put(t / "bin/nvidia-smi", b"x"), "'bin/nvidia-smi' has 1 bytes instead of"),
    "mode": (
        lambda t: (t / "bin/nvidia-smi").chmod(0o700),
        "'bin/nvidia-smi' has mode 0700 instead of 0755",
    ),
    "setuid": (lambda t: (t / "bin/nvidia-smi").chmod(0o4755), "has mode 4755 instead of 0755"),
    "directory mode": (lambda t: (t / "bin").chmod(0o777), "directory 'bin' may be written by others"),
    "extra": (lambda t: put(t / "lib64/libx.so.1", b"x"), "'lib64/libx.so.1' is not in the manifest"),
    "extra hidden": (lambda t: put(t / ".x", b"x"), "'.x' is not in the manifest"),
    "extra directory": (lambda t: (t / "etc/deep").mkdir(parents=True), "'etc' is not in the manifest"),
    "extra newline": (lambda t: put(t / "bin/a\nb", b"x"), "'bin/a\\nb' is not in the manifest"),
    "fifo": (lambda t: os.mkfifo(t / "share/fifo"), "'share/fifo' is not in the manifest"),
    "file is fifo": (lambda t: swap(t / "bin/nvidia-smi", os.mkfifo), "'bin/nvidia-smi' is not a file"),
    "file is link": (lambda t: move(t / "bin/nvidia-smi", "../../x"), "'bin/nvidia-smi' is not a file"),
    "directory is link": (lambda t: move(t / "bin", "../x"), "'bin' is not a directory"),
    "link target": (
        lambda t: swap(t / "lib64/libcuda.so.1", lambda path: path.symlink_to("libcuda.so")),
        "'lib64/libcuda.so.1' names 'libcuda.so' instead of 'libcuda.so.535.309.01'",
    ),
    "link is file": (
        lambda t: put(t / "lib64/libcuda.so.1", b"x"),
        "'lib64/libcuda.so.1' is not a symbolic",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_verify_refuses(tree: Path, name: str) -> None:
    spoiling, words = SPOILED[name]
    trees = Trees(tree.parents[2])
    trees.verify(str(tree), BUILD)
    spoiling(tree)
    refused(Code.TREE_INVALID, words, doing=lambda: trees.verify(str(tree), BUILD))


def test_verify_says_how_many_more(tree: Path) -> None:
    for path in (tree / "bin").iterdir():
        path.unlink()
    failure = refused(Code.TREE_INVALID, doing=lambda: Trees(tree).verify(str(tree), BUILD))
    assert "'bin/nvidia-modprobe' is missing (and 2 more faults)" in failure.sentence


@pytest.mark.parametrize("fault", [Fault.WRONG_OS, Fault.WRONG_KERNEL, Fault.WRONG_DRIVER])
def test_verify_refuses_another_identity(tree: Path, fault: Fault) -> None:
    spoil(tree, fault)
    failure = refused(Code.IMAGE_MISMATCH, doing=lambda: Trees(tree).verify(str(tree), BUILD))
    assert " instead of '" in failure.sentence


def test_verify_file(tree: Path) -> None:
    trees = Trees(tree.parents[2])
    module = f"lib/modules/{KERNEL}/nvidia.ko"
    for path in (module, "lib64/libcuda.so.1"):
        trees.verify_file(str(tree), path)
    put(tree / module, (tree / module).read_bytes()[:-1] + b"x", 0o644)
    refused(Code.TREE_INVALID, module, "sha256", doing=lambda: trees.verify_file(str(tree), module))
    (tree / module).unlink()
    refused(Code.TREE_INVALID, f"'{module}' is missing", doing=lambda: trees.verify_file(str(tree), module))
    refused(Code.TREE_INVALID, "not in its manifest", doing=lambda: trees.verify_file(str(tree), "bin/x"))
    shutil.rmtree(tree)
    refused(Code.TREE_MISSING, doing=lambda: trees.verify_file(str(tree), module))


def test_manifest_that_is_none(tree: Path) -> None:
    trees = Trees(tree.parents[2])
    path = tree / "manifest.json"
    text = path.read_bytes()
    path.write_bytes(b"\xff" + text)
    refused(Code.MANIFEST_INVALID, "UTF-8", doing=lambda: trees.manifest(str(tree)))
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(Code.TREE_MISSING, doing=lambda: trees.manifest(str(tree)))
    path.unlink()
    os.mkfifo(path)
    refused(Code.TREE_MISSING, doing=lambda: trees.manifest(str(tree)))
    path.unlink()
    with path.open("wb") as file:
        file.truncate(manifests.MAX_CHARACTERS + 1)
    refused(Code.TREE_MISSING, "too large", doing=lambda: trees.manifest(str(tree)))


# ---------------------------------------------------------------------------------------------------
# Killed at every instant: a child of ours kills itself before its n-th dealing with a file.

WATCHED = ("open", "os.", "shutil.", "fcntl.", "ctypes.")


def killed_at(number: int, doing: Callable[[], object]) -> bool:
    """Whether the child was killed; False when it had ended before."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event.startswith(WATCHED):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            doing()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        return True
    assert os.waitstatus_to_exitcode(ended) == 0
    return False


def killed_everywhere(
    prepare: Callable[[], Trees], doing: Callable[[Trees], object], check: Callable[[Trees], object]
) -> int:
    number = 0
    while True:
        number += 1
        trees = prepare()
        killed = killed_at(number, lambda trees=trees: doing(trees))  # type: ignore[misc]
        for tree in trees.list():
            trees.verify(tree.path, tree.build)
        check(trees)
        doing(trees)
        assert leftovers(trees.root) == []
        if not killed:
            return number


def small(tree: Path) -> Path:
    """Few files: every one is several instants."""
    for path in (
        *tree.glob("lib64/*[!a].so*"),
        *tree.glob("lib/modules/*/nvidia-*"),
        *tree.glob("bin/*-[pm]*"),
    ):
        path.unlink()
    manifest = manifests.parse((tree / "manifest.json").read_text())
    write_manifest(tree, manifests.render(replace(manifest, entries=entries(tree))))
    return tree


@pytest.fixture
def quick() -> Iterator[Path]:
    """A place in memory where there is one: a disk that others keep busy takes seconds for so many syncs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        yield Path(place)


def fresh(root: Path) -> Trees:
    files.remove_tree(root)
    return Trees(root)


def test_install_killed_everywhere(quick: Path, tree: Path) -> None:
    def check(trees: Trees) -> None:
        assert len(trees.list()) <= 1

    def install(trees: Trees) -> None:
        trees.verify(trees.install(tree, quiet).path, BUILD)

    small(tree)
    assert killed_everywhere(lambda: fresh(quick / "opt"), install, check) > 30


def test_replace_killed_everywhere(quick: Path, tree: Path) -> None:
    small(tree)
    other = small(source(quick / "other", compiler="another compiler"))

    def prepare() -> Trees:
        trees = fresh(quick / "opt")
        trees.select(trees.install(tree, quiet).path)
        return trees

    def check(trees: Trees) -> None:
        # Never an instant without a complete tree behind `current`.
        current = trees.current()
        assert current is not None
        trees.verify(current, BUILD)

    assert killed_everywhere(prepare, lambda trees: trees.install(other, quiet), check) > 30


def test_select_killed_everywhere(quick: Path, tree: Path) -> None:
    first = fresh(quick / "opt").install(tree, quiet).path
    second = Trees(quick / "opt").install(source(quick / "b", "3602.2.0"), quiet).path

    def prepare() -> Trees:
        trees = Trees(quick / "opt")
        trees.select(first)
        return trees

    def check(trees: Trees) -> None:
        assert trees.current() in (first, second)

    assert killed_everywhere(prepare, lambda trees: trees.select(second), check) > 3


def test_remove_killed_everywhere(quick: Path, tree: Path) -> None:
    small(tree)
    kept = small(source(quick / "b", "3602.2.0"))

    def prepare() -> Trees:
        trees = fresh(quick / "opt")
        trees.install(tree, quiet)
        trees.install(kept, quiet)
        return trees

    def remove(trees: Trees) -> None:
        for each in trees.list():
            if each.build == BUILD:
                trees.remove(each.path)
        # What a removal that was killed left is swept by whatever comes next.
        trees.install(kept, quiet)

    def check(trees: Trees) -> None:
        assert {each.build.os_version for each in trees.list()} >= {"3602.2.0"}

    assert killed_everywhere(prepare, remove, check) > 20


# ---------------------------------------------------------------------------------------------------
# The rest of files.


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.atomic_write(path, "first\n")
    files.atomic_write(path, b"second\n", 0o600)
    assert path.read_text() == "second\n"
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / ".file.tmp").symlink_to("victim")
    files.atomic_write(path, "third\n")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with pytest.raises(FileNotFoundError):
        files.atomic_write(tmp_path / "none/file", "x")


def test_suppress_oserror() -> None:
    with files.suppress_oserror(errno.ENOENT):
        Path("/nowhere/x").read_text()
    with pytest.raises(FileNotFoundError), files.suppress_oserror(errno.EACCES):
        Path("/nowhere/x").read_text()


def test_exchange(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange names")
    assert (tmp_path / "a/b").exists()
    with pytest.raises(FileNotFoundError):
        files.exchange(tmp_path / "a", tmp_path / "c")
