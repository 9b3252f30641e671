# SPDX-License-Identifier: Apache-2.0
"""What an image's program is given: the directory of its trees, and a filter that any engine understands."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest

from nvidiad.thought import confinement

NVIDIA = PurePosixPath("/opt/nvidia")
WITH: dict[str, Any] = {"SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"]}


def security(engine: dict[str, Any]) -> list[str]:
    given: list[str] = confinement.host_config("/x", NVIDIA, engine, gentle=False)["security_opt"]
    return given


@pytest.mark.parametrize(
    ("root", "labels", "bundle"),
    [
        ("/opt", {"io.nvidiad.driver": "535.309.01"}, "/opt/nvidia"),
        ("/opt", {"io.nvidiad.kind": "driver"}, "/opt/nvidia"),
        ("/var/opt", {"io.nvidiad.kind": "cuda"}, "/var/opt/cuda"),
        ("/opt", {"io.nvidiad.kind": "../../etc"}, "/opt/nvidia"),
        ("/opt", {}, "/opt/nvidia"),
    ],
)
def test_the_labels_say_which_directory_it_is(root: str, labels: dict[str, str], bundle: str) -> None:
    assert str(confinement.bundle(PurePosixPath(root), labels)) == bundle


def test_nothing_of_the_host_is_writable_but_the_place() -> None:
    config = confinement.host_config("/var/opt/nvidia", NVIDIA, WITH, gentle=False)
    writable = [(m["Source"], m["Target"]) for m in config["mounts"] if not m.get("ReadOnly")]
    assert writable == [("/var/opt/nvidia", "/rootfs/opt/nvidia")]
    assert "privileged" not in config and "binds" not in config


def test_a_filter_only_where_the_engine_has_one() -> None:
    # Of an engine without it a filter is an error.
    assert not [option for option in security({"SecurityOptions": []}) if "seccomp" in option]
    assert not [option for option in security({}) if "seccomp" in option]
    (option,) = (option for option in security(WITH) if "seccomp" in option)
    filtered = json.loads(option.partition("=")[2])
    refused = {name for rule in filtered["syscalls"] for name in rule["names"]}
    assert {"mount", "unshare", "setns", "ptrace", "socket", "init_module", "keyctl", "bpf"} <= refused
    # Every program begins with these.
    assert not refused & {"execve", "read", "mmap", "openat", "renameat2", "syncfs", "fork", "vfork"}
    # Without a process of its own a shell does nothing: only new namespaces are refused of it.
    (clone,) = (rule for rule in filtered["syscalls"] if rule["names"] == ["clone"])
    assert clone["args"][0]["value"] == clone["args"][0]["valueTwo"] == 0x10000000


@pytest.mark.parametrize(("gentle", "weights"), [(True, (64, 10)), (False, (None, None))])
def test_a_gentle_one_has_little_weight(gentle: bool, weights: tuple[int | None, ...]) -> None:  # noqa: FBT001
    config = confinement.host_config("/x", NVIDIA, {}, gentle=gentle)
    assert (config["cpu_shares"], config["blkio_weight"]) == weights
