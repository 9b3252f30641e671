# SPDX-License-Identifier: Apache-2.0
"""Confinement: what the program of an image is given of the host, and what its kernel refuses it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nvidiad.nouns import manifest, naming

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import PurePosixPath

ROOTFS = "/rootfs"
"""Where an installer looks for the root directory of the host."""
LOADED = "/sys/module"
"""Where it looks whether the driver is loaded."""
# Its directories and files may be another user's: a person's hand, a killed installer of old.
CAPABILITIES = ("DAC_OVERRIDE", "FOWNER")
# A shell, awk and cp need a few MB. What they read and write counts too and gives way, and is then read from
# disk when it is verified: a large driver fits twice.
MEMORY = 2 << 30
PROCESSES = 256
_ENOSYS = 38
_NEW_USER = 0x10000000
# A list of what is refused, not of what is allowed: an engine's own list refuses what is newer than the
# engine, and with an errno that the tools of a newer image take for an answer.
_REFUSED = """
    acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init finit_module
    fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr move_mount move_pages
    name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
    process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key
    setdomainname sethostname setns settimeofday socket socketpair swapoff swapon syslog umount umount2
    unshare uselib userfaultfd ustat
""".split()  # noqa: SIM905 - so many words read better as words


def bundle(root: PurePosixPath, labels: Mapping[str, str]) -> PurePosixPath:
    """Where the trees of an image with these labels are: all that its program needs of the host.

    Not the install root: nvidiad itself may lie there.
    """
    return naming.bundle_root(root, manifest.labelled(labels).kind)


def seccomp() -> str:
    """The filter of system calls, as an engine takes it."""
    refuse = "SCMP_ACT_ERRNO"
    new_user = {"index": 0, "value": _NEW_USER, "valueTwo": _NEW_USER, "op": "SCMP_CMP_MASKED_EQ"}
    calls: list[dict[str, object]] = [
        {"names": _REFUSED, "action": refuse},
        {"names": ["clone"], "action": refuse, "args": [new_user]},
        # Its flags are in memory, where no filter sees them; a C library then takes the one above.
        {"names": ["clone3"], "action": refuse, "errnoRet": _ENOSYS},
    ]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls})


def host_config(
    place: str, bundle: PurePosixPath, engine: Mapping[str, Any], *, gentle: bool
) -> dict[str, Any]:
    """docker-py's arguments for a container that has `place` of the host, as `bundle`, and nothing more.

    `engine` is what the engine says of itself.
    """
    security = ["no-new-privileges", "label=disable"]
    if any("seccomp" in option for option in engine.get("SecurityOptions") or ()):
        security.append(f"seccomp={seccomp()}")
    return {
        "mounts": [
            {"Type": "bind", "Source": place, "Target": f"{ROOTFS}{bundle}"},
            {"Type": "bind", "Source": LOADED, "Target": f"{ROOTFS}{LOADED}", "ReadOnly": True},
        ],
        "read_only": True,
        # For what a shell puts aside.
        "tmpfs": {"/tmp": "size=64m"},  # noqa: S108 - in the container
        "network_mode": "none",
        # Trees are root's, also where the engine gives its containers other users.
        "userns_mode": "host",
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES),
        "security_opt": security,
        "mem_limit": MEMORY,
        "pids_limit": PROCESSES,
        "auto_remove": True,
        # Others have 1024 and 500. Under cgroup v2 that is a weight of 3 and 1, where others have 100. Said
        # here, not later: one runtime (crun 1.8) ends a container whose weights are changed.
        "cpu_shares": 64 if gentle else None,
        "blkio_weight": 10 if gentle else None,
    }
