# SPDX-License-Identifier: Apache-2.0
"""Files that tell of a reboot: a real inotify on real directories."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.world.filewatch import FileWatch
from tests.beds.common import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[FileWatch]:
    (tmp_path / "run").mkdir()
    (tmp_path / "boot").mkdir()
    (tmp_path / "run/next").write_text("before")
    watch = FileWatch(
        tmp_path / "run/reboot-required",
        tmp_path / "run/next",
        tmp_path / "boot/vmlinuz*",
        tmp_path / "missing/file",
    )
    yield watch
    watch.close()


def readable(watch: FileWatch) -> bool:
    return bool(select.select([watch.fileno()], [], [], 0)[0])


def rename(root: Path) -> None:
    (root / "run/.next.tmp").write_text("after")
    (root / "run/.next.tmp").rename(root / "run/next")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file comes": (lambda root: (root / "run/reboot-required").touch(), "run/reboot-required"),
    "a file is written": (lambda root: (root / "run/next").write_text("after"), "run/next"),
    "a file is renamed over it": (rename, "run/next"),
    "a file goes": (lambda root: (root / "run/next").unlink(), "run/next"),
    "a kernel comes": (lambda root: (root / "boot/vmlinuz-6.1").touch(), "boot/vmlinuz-6.1"),
    "a link is made": (lambda root: (root / "boot/vmlinuz").symlink_to("x"), "boot/vmlinuz"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_a_reason(tmp_path: Path, watch: FileWatch, case: str) -> None:
    change, name = CHANGES[case]
    assert not readable(watch)
    change(tmp_path)
    assert readable(watch)
    assert watch.drain() == (f"'{tmp_path / name}' changed",)
    assert not readable(watch)
    assert watch.drain() == ()


def test_what_else_happens_beside_is_none(tmp_path: Path, watch: FileWatch) -> None:
    (tmp_path / "run/docker.sock").touch()
    (tmp_path / "boot/initrd.img").touch()
    # The kernel would drop a second event that is like the one before.
    for number in range(3000):
        (tmp_path / f"run/pod-{number}").touch()
    assert watch.drain() == ()
    (tmp_path / "run").rename(tmp_path / "gone")
    (tmp_path / "gone/next").unlink()
    assert watch.drain() == (f"'{tmp_path}/run/next' changed",)


def test_a_flood_is_a_reason_of_its_own(tmp_path: Path, watch: FileWatch) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 1 << 16:
        pytest.skip(f"this host queues {limit} events")
    for number in range(limit // 2 + 1):
        (tmp_path / f"run/{number}").touch()
    assert watch.drain() == ("files changed faster than they were looked at",)


# In a user namespace of its own root may have no inotify instance, and nobody else is disturbed.
_NONE_LEFT = """
echo 0 >/proc/sys/user/max_inotify_instances || exit 77
exec "$1" -c '
import pathlib, select, sys
from nvidiad.world.filewatch import FileWatch
file = pathlib.Path(sys.argv[1])
watch = FileWatch(file)
file.touch()
print(select.select([watch.fileno()], [], [], 0)[0], watch.drain())
watch.close()
' "$2"
"""


def test_a_host_without_inotify_instances_is_only_polled(tmp_path: Path) -> None:
    shell = ["sh", "-c", _NONE_LEFT, "sh", sys.executable, str(tmp_path / "file")]
    apart = ["unshare", "--user", "--map-root-user", "--mount-proc", "--mount", "--pid", "--fork"]
    done = subprocess.run([*apart, *shell], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no user namespace with its own limits here: {done.stderr}")
    assert done.stderr == ""
    assert done.stdout == "[] ()\n"
