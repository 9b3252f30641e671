# SPDX-License-Identifier: Apache-2.0
"""The guest's writable root: Debian's files, the bed's (`guest/`), and a boot short enough for TCG."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.beds.common import debian_tree, run_checked

SUITE = "bookworm"  # its Python is the one the virtual environment was compiled for
FILES = Path(__file__).parent / "guest"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod"),
    *("procps", "iproute2", "pciutils", "fdisk", "psmisc"),
    *("docker.io", "docker-registry", "crun", "iptables", "ca-certificates", "curl"),
    *("python3", "python3-jeepney", "qemu-guest-agent"),
)

# Nobody logs in, nothing is updated, and a unit that is skipped saves 50-500 ms of emulated boot.
_MASKED_UNITS = """
    getty@tty1.service serial-getty@ttyS0.service console-getty.service systemd-ask-password-wall.path
    systemd-ask-password-console.path systemd-initctl.socket
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer systemd-tmpfiles-clean.timer
    e2scrub_all.timer e2scrub_reap.service
    ldconfig.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
    systemd-journal-catalog-update.service systemd-update-done.service systemd-firstboot.service
    systemd-sysusers.service systemd-repart.service systemd-random-seed.service systemd-pstore.service
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrmachine.service
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount
    modprobe@fuse.service modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service
    modprobe@loop.service modprobe@dm_mod.service
    systemd-modules-load.service kmod-static-nodes.service systemd-remount-fs.service
    systemd-networkd-wait-online.service
"""
# systemd runs every generator at every boot and reload: together 4 s under TCG.
_MASKED_GENERATORS = """
    cryptsetup debug fstab getty gpt-auto hibernate-resume integritysetup rc-local run system-update sysv
    veritysetup bless-boot tpm2 ssh import factory-reset
"""


def tree() -> Path:
    """The Debian tree that both /usr slots and the root are cut from."""
    return debian_tree("vm", SUITE, PACKAGES)


def populate(root: Path, debian: Path, venv: Path) -> None:
    """Fill `root` with everything but /usr."""
    leave_out = ["./usr", "./dev/*", "./boot", "./var/cache/*", "./var/lib/apt/*", "./var/log/*"]
    excludes = " ".join(f"--exclude='{pattern}'" for pattern in leave_out)
    copy = f"tar -C {debian} -cf - {excludes} . | tar -C {root} -xpf -"
    run_checked(["sh", "-c", copy], "copying the root")
    for folder in ("usr", "boot", "opt", "var/cache/ldconfig", "var/log/journal"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copytree(FILES, root, dirs_exist_ok=True)
    unused = shutil.ignore_patterns("pip", "pip-*", "setuptools*")
    shutil.copytree(venv, root / "opt/nvidiad", symlinks=True, ignore=unused)
    _trim_boot(root)
    shadow = root / "etc/shadow"
    shadow.write_text(shadow.read_text().replace("root:*:", "root::"))
    (root / "etc/fstab").write_text("")
    (root / "etc/os-release").unlink(missing_ok=True)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")


def _trim_boot(root: Path) -> None:
    units = root / "etc/systemd/system"
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(parents=True, exist_ok=True)
    for unit in _MASKED_UNITS.split():
        _null(units / unit)
    for name in _MASKED_GENERATORS.split():
        _null(generators / f"systemd-{name}-generator")
    # What Debian enables by itself; a test starts what it needs.
    for wanted in ("docker", "containerd", "docker-registry", "e2scrub", "remote-fs"):
        for link in units.glob(f"*.wants/{wanted}*"):
            link.unlink()
    for folder in ("timers.target.wants", "getty.target.wants"):
        shutil.rmtree(units / folder, ignore_errors=True)
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def _null(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")
