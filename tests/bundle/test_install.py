# SPDX-License-Identifier: Apache-2.0
"""install and uninstall: with a busybox alone, over each other, interrupted at every command, on images."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.beds import bundle
from tests.beds.common import CHECKOUT
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bundle.bare import Bare
    from tests.bundle.conftest import Bundles

BASE = "opt/nvidiad"
UNITS = sorted(
    str(path.relative_to(CHECKOUT / "units")) for path in (CHECKOUT / "units").rglob("*") if path.is_file()
)
# Each is a fifth of a second. The whole set goes through all of them.
_STRIDE = 1 if os.environ.get("NVIDIAD_FAULTS") == "all" else 11
# bash tells before each command that it comes; at the wanted one everything ends.
_KILLED = """
set -T
trap 'printf . >>"$COUNT"; read -r n <"$COUNT" || :; [ ${#n} -le "$WANTED" ] || kill -9 -- -$$' DEBUG
script=$0
. "$script"
"""


def installed(root: Path) -> dict[str, str]:
    """All that is on the disk, as text: what two ways to the same state must have in common."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = f"{path.stat().st_mode:o} {path.stat().st_uid} {path.read_bytes()!r}"
        else:
            found[name] = f"{path.stat().st_mode:o}"
    found.pop(f"{BASE}/.lock", None)
    return found


def small(
    folder: Path, version: str, *, units: dict[str, str] | None = None, without: tuple[str, ...] = ()
) -> Path:
    """A tree of few small files, with the real scripts and the real units, for a thousand installations."""
    tree = folder / f"nvidiad-{version}"
    shutil.copytree(CHECKOUT / "units", tree / "share/nvidiad/units")
    for name, text in (units or {}).items():
        (tree / "share/nvidiad/units" / name).write_text(text)
    for name in without:
        (tree / "share/nvidiad/units/systemd/system" / name).unlink()
    for name in trees.COMMANDS:
        (tree / "bin").mkdir(exist_ok=True)
        (tree / "bin" / name).write_text(f"#!/bin/sh\necho {name} {version}\n")
        (tree / "bin" / name).chmod(0o755)
    for script in ("install", "uninstall"):
        shutil.copy(CHECKOUT / "tools/bundle" / script, tree / script)
    trees.seal(tree, version)
    return tree


def run(tree: Path, script: str, root: Path, *more: str, killed_at: int | None = None) -> bool:
    """Run a tree's script on a root directory; whether it came to its end before it was killed."""
    arguments = [str(tree / script), f"--root={root}", *more]
    count = root.parent / "count"
    if killed_at is None:
        done = subprocess.run(["sh", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return True
    count.write_text("")
    environment = {**os.environ, "COUNT": str(count), "WANTED": str(killed_at)}
    words = ["bash", "-c", _KILLED, *arguments]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, start_new_session=True
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == 0


def test_with_a_busybox_alone(bare: Bare, bundles: Bundles) -> None:
    """From the archive to the command and away again, with nothing left but the configuration."""
    before = bare.files()
    bare.unpack(next(bundles.dist.glob("*.tar.gz")), "/tmp")
    (place,) = (path.name for path in (bare.root / "tmp").iterdir() if path.is_dir())
    assert "is installed in" in bare.output(f"/tmp/{place}/install")
    shutil.rmtree(bare.root / "tmp" / place)
    version, _ = trees.release(bundles.tree)
    assert bare.output("nvidiad", "--version") == f"nvidiad {version}\n"
    assert all((bare.root / "etc" / unit).is_file() for unit in UNITS)
    assert {path.stat().st_uid for path in (bare.root / BASE).rglob("*")} == {0}
    assert "already" in bare.output("/opt/nvidiad/current/install")
    # What nvidiad writes while it runs, and what other people own.
    for name in ("etc/ld.so.conf.d/nvidiad.conf", "etc/systemd/system/pod.service.d/10-nvidia.conf"):
        (bare.root / name).parent.mkdir(parents=True, exist_ok=True)
        (bare.root / name).write_text("# Written by nvidiad; see nvidiad(8).\n")
    (bare.root / "var/lib/nvidiad").mkdir(parents=True)
    bare.output("/opt/nvidiad/current/uninstall")
    left = {name for name in bare.files().keys() - before.keys() if (bare.root / name).is_file()}
    assert left == {"etc/nvidiad/nvidiad.toml", "tmp/bundle.tar.gz"}
    bare.unpack(next(bundles.dist.glob("*.tar.gz")), "/tmp")
    bare.output(f"/tmp/{place}/uninstall", "--purge")
    assert not (bare.root / "etc/nvidiad").exists()


def test_another_architecture_is_refused(bare: Bare, bundles: Bundles) -> None:
    small(bare.root / "opt", "1.0")
    release = bare.root / "opt/nvidiad-1.0" / trees.RELEASE
    release.write_text(release.read_text().replace(f"MACHINE={os.uname().machine}", "MACHINE=riscv64"))
    done = bare.run("/opt/nvidiad-1.0/install")
    assert done.returncode == 1
    assert done.stderr == f"install: this bundle is for riscv64, and this host is {os.uname().machine}\n"
    assert not (bare.root / BASE).exists()


def test_a_damaged_bundle_is_refused_and_a_damaged_installation_is_mended(tmp_path: Path) -> None:
    root, tree = tmp_path / "root", small(tmp_path, "1.0")
    root.mkdir()
    good = (tree / "bin/nvidiad").read_text()
    (tree / "bin/nvidiad").write_text("torn")
    done = subprocess.run([tree / "install", f"--root={root}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"install: '{tree}' is damaged: unpack it again\n"
    assert not (root / BASE / "current").exists()
    (tree / "bin/nvidiad").write_text(good)
    run(tree, "install", root)
    (root / BASE / "1.0/bin/nvidiad").write_text("torn")
    run(tree, "install", root)
    assert (root / BASE / "bin/nvidiad").read_text() == good


def test_a_damaged_version_is_not_gone_back_to(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for version in ("1.0", "2.0"):
        run(small(tmp_path, version), "install", root)
    (root / BASE / "1.0/bin/nvidiad").write_text("torn")
    inside = root / BASE / "other/nvidiad-3.0"
    shutil.copytree(small(tmp_path, "3.0"), inside)
    for place, why in ((root / BASE / "previous", "is damaged"), (inside, "cannot be used from there")):
        command = [str(place / "install"), f"--root={root}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert why in done.stderr
        assert str((root / BASE / "current").readlink()) == "2.0"


def test_a_version_that_cannot_run_is_not_switched_to(bare: Bare) -> None:
    one, two = (small(bare.root / "tmp", version) for version in ("1.0", "2.0"))
    bare.output(f"/tmp/{one.name}/install")
    (two / "bin/nvidiad").write_text("#!/bin/sh\nexit 126\n")
    trees.seal(two, "2.0")
    done = bare.run(f"/tmp/{two.name}/install")
    assert done.returncode == 1
    assert "'/opt/nvidiad/2.0/bin/nvidiad' cannot be run here" in done.stderr
    assert str((bare.root / BASE / "current").readlink()) == "1.0"


def test_everything_is_on_the_disk_before_it_counts_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system of /opt alone is not enough: units are in /etc."""
    root, tree, programs = tmp_path / "root", small(tmp_path, "1.0"), tmp_path / "programs"
    root.mkdir()
    programs.mkdir()
    (programs / "sync").write_text(f"#!/bin/sh\n[ $# != 0 ] || ls -A {root / BASE} >{tmp_path}/seen\n")
    (programs / "sync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    run(tree, "install", root)
    assert {".unfinished", "current"} <= set((tmp_path / "seen").read_text().split())
    assert not (root / BASE / ".unfinished").exists()


def test_beside_the_package_it_is_refused(tmp_path: Path) -> None:
    root, tree = tmp_path / "root", small(tmp_path, "1.0")
    (root / "usr/lib/nvidiad/bin").mkdir(parents=True)
    (root / "usr/lib/nvidiad/bin/nvidiad").write_text("#!/bin/sh\n")
    done = subprocess.run([tree / "install", f"--root={root}"], capture_output=True, text=True, check=False)
    assert (done.returncode, (root / BASE).exists()) == (1, False)
    assert "remove it first" in done.stderr


def test_upgrade_keeps_one_version_to_go_back_to(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    gone = {"systemd/system/gone.service": "[Unit]\nDescription=of 1.0 only\n"}
    one, two, three = small(tmp_path, "1.0", units=gone), small(tmp_path, "2.0"), small(tmp_path, "3.0")
    run(one, "install", root)
    (root / "etc/nvidiad/nvidiad.toml").write_text("mine")
    run(two, "install", root)
    assert not (root / "etc/systemd/system/gone.service").exists()
    (root / "etc/systemd/system/nvidiad.service").write_text("also mine")
    run(three, "install", root)
    trees_there = sorted(path.name for path in (root / BASE).iterdir() if not path.name.startswith("."))
    assert trees_there == ["2.0", "3.0", "bin", "current", "previous"]
    links = {name: str((root / BASE / name).readlink()) for name in ("current", "previous", "bin/nvidiad")}
    assert links == {"current": "3.0", "previous": "2.0", "bin/nvidiad": "../current/bin/nvidiad"}
    assert (root / "etc/nvidiad/nvidiad.toml").read_text() == "mine"
    assert (root / "etc/systemd/system/nvidiad.service.old").read_text() == "also mine"
    # Going back needs nothing but what is there.
    run(root / BASE / "previous", "install", root)
    assert {str((root / BASE / name).readlink()) for name in ("current",)} == {"2.0"}
    assert str((root / BASE / "previous").readlink()) == "3.0"
    assert (root / BASE / "bin/nvidiad").read_text().endswith("2.0\n")


def test_a_gate_that_was_taken_back_stays_away(tmp_path: Path) -> None:
    """nvidiad removes the kubelet's where `units.gated` does not name it."""
    root, gate = tmp_path / "root", "etc/systemd/system/kubelet.service.d/10-nvidia.conf"
    root.mkdir()
    one = small(tmp_path, "1.0")
    run(one, "install", root)
    assert (root / gate).exists()
    shutil.rmtree((root / gate).parent)
    for tree in (one, small(tmp_path, "2.0")):
        run(tree, "install", root)
        assert not (root / gate).exists()
    # Where it is in use a later version brings its own.
    run(small(tmp_path, "3.0"), "uninstall", root)
    run(one, "install", root)
    text = "[Unit]\n"
    run(small(tmp_path, "4.0", units={gate.removeprefix("etc/"): text}), "install", root)
    assert (root / gate).read_text() == text


def test_another_build_of_the_same_version_lies_beside(tmp_path: Path) -> None:
    root, one = tmp_path / "root", small(tmp_path, "1.0")
    root.mkdir()
    run(one, "install", root)
    (one / "bin/nvidiad").write_text("#!/bin/sh\necho mended\n")
    trees.seal(one, "1.0")
    run(one, "install", root)
    assert "mended" in (root / BASE / "bin/nvidiad").read_text()
    assert str((root / BASE / "previous").readlink()) == "1.0"


def test_the_environment_of_make_install_is_replaced(tmp_path: Path) -> None:
    root, tree = tmp_path / "root", small(tmp_path, "1.0")
    base = root / BASE
    (base / "lib/python3.11/site-packages").mkdir(parents=True)
    (base / "bin").mkdir()
    for name in ("nvidiad", "pip", "activate"):
        (base / "bin" / name).write_text("#!/opt/nvidiad/bin/python3\n")
    (base / "bin/python3").symlink_to("/usr/bin/python3")
    (base / "lib64").symlink_to("lib")
    (base / "pyvenv.cfg").write_text("home = /usr/bin\n")
    other = tmp_path / "other"
    other.mkdir()
    run(tree, "install", root)
    run(tree, "install", other)
    assert installed(root) == installed(other)


@pytest.mark.parametrize("case", ["upgrade", "environment"])
def test_installation_killed_before_every_command(tmp_path: Path, case: str) -> None:
    """Whatever it was killed in: `current` names a whole tree, and the next one brings the same end."""
    before = tmp_path / "before"
    before.mkdir()
    if case == "upgrade":
        for number in ("0.1", "0.2"):
            run(small(tmp_path, number), "install", before)
    if case == "environment":
        (before / BASE / "lib").mkdir(parents=True)
        (before / BASE / "bin").mkdir()
        (before / BASE / "bin/nvidiad").write_text("#!/opt/nvidiad/bin/python3\n")
        (before / BASE / "pyvenv.cfg").write_text("home = /usr/bin\n")
    tree = small(tmp_path, "1.0")
    every_way_ends_alike(tmp_path, tree, before, "install")


def test_removal_killed_before_every_command(tmp_path: Path) -> None:
    before, tree = tmp_path / "before", small(tmp_path, "1.0")
    before.mkdir()
    run(tree, "install", before)
    (before / "etc/ld.so.conf.d").mkdir()
    (before / "etc/ld.so.conf.d/nvidiad.conf").write_text("# Written by nvidiad; see nvidiad(8).\n")
    every_way_ends_alike(tmp_path, tree, before, "uninstall")


def every_way_ends_alike(work: Path, tree: Path, before: Path, script: str) -> None:
    wanted = work / "wanted"
    shutil.copytree(before, wanted, symlinks=True)
    run(tree, script, wanted)
    goal = installed(wanted)
    root, at, ended = work / "root", 0, False
    while not ended:
        shutil.copytree(before, root, symlinks=True)
        ended = run(tree, script, root, killed_at=at)
        current = root / BASE / "current"
        if script == "install" and current.is_symlink():
            check = ["sha256sum", "--quiet", "-c", "share/nvidiad/SHA256SUMS"]
            subprocess.run(check, cwd=current, check=True)
        run(tree, script, root)
        assert installed(root) == goal, f"killed before command {at}"
        shutil.rmtree(root)
        at += _STRIDE
    assert at > 100


def test_no_label_is_left_of_an_nvidiad_that_is_gone(tmp_path: Path) -> None:
    root, tree = tmp_path / "root", small(tmp_path, "1.0")
    root.mkdir()
    run(tree, "install", root)
    features = root / "etc/kubernetes/node-feature-discovery/features.d"
    ours, elsewhere = "# Written by nvidiad (kubernetes.nfd-file).\n", root / "srv/labels/gpu driver"
    texts = {features / "nvidiad": ours, features / "mine": "a=b\n", elsewhere: ours}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "etc/nvidiad/conf.d").mkdir()
    key = '[kubernetes]\n  nfd-file = "/srv/labels/gpu driver"  # ours\n'
    (root / "etc/nvidiad/conf.d/60-labels.toml").write_text(key)
    run(tree, "uninstall", root, "--purge")
    assert [path for path in texts if path.exists()] == [features / "mine"]


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="there is no systemctl on this machine")
def test_an_image_gets_it_enabled(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    run(small(tmp_path, "1.0"), "install", root, "--enable")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    assert sorted(path.name for path in wants.iterdir()) == ["nvidia.service", "nvidiad.service"]
    run(small(tmp_path, "2.0"), "uninstall", root, "--purge")
    assert not [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="there is no systemctl on this machine")
def test_a_unit_that_is_new_is_enabled_where_nvidiad_is(tmp_path: Path) -> None:
    """Wherever the upgrade is interrupted, and nothing else is: somebody may have disabled it."""
    service = "systemd/system/nvidiad.service"
    shipped = (CHECKOUT / "units" / service).read_text()
    older = {service: shipped.replace(" nvidia-cdi.service nvidia-health.service", "")}
    one = small(tmp_path, "1.0", units=older, without=("nvidia-cdi.service", "nvidia-health.service"))
    two = small(tmp_path, "2.0")
    off, on = tmp_path / "off", tmp_path / "on"
    for root in (off, on):
        root.mkdir()
    run(one, "install", off)
    run(two, "install", off)
    assert not [path for path in (off / "etc").rglob("*") if path.is_symlink()]
    run(one, "install", on, "--enable")
    disabled = "etc/systemd/system/nvidia.service.wants/nvidia-fabricmanager.service"
    (on / disabled).unlink()
    every_way_ends_alike(tmp_path, two, on, "install")
    run(two, "install", on)
    wants = {path.name for path in (on / disabled).parent.iterdir()}
    assert wants == {"nvidia-persistenced.service", "nvidia-cdi.service", "nvidia-health.service"}


def test_a_later_version_says_so(bundles: Bundles, tmp_path: Path) -> None:
    """The second version that other tests upgrade to is one."""
    assert trees.release(bundles.later)[0] == bundle.LATER
    done = subprocess.run(
        [bundles.later / "bin/nvidiad", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"nvidiad {bundle.LATER}\n"
