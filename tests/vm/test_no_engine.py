# SPDX-License-Identifier: Apache-2.0
"""A machine without a container engine: its driver comes from the registry; no later boot needs that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm import road

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

UNITS = "docker.socket docker.service containerd.service"


def test_a_machine_without_docker_comes_to_the_same_end(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    vm.run(f"systemctl mask -q --now {UNITS}; rm -f /run/docker.sock", check=True)
    road.configure(vm)
    road.publish(vm, [road.payload(tmp_path, "A", bed_kernels.a)])
    vm.run("systemctl enable -q kubelet nvidiad && systemctl start nvidiad", check=True)
    document = road.wait_phase(vm, "ready")
    assert document["engine"]["kind"] == "registry"
    steps = [step["step"] for step in document["report"]["steps"]]
    assert "start-unit" in steps
    vm.wait_unit("nvidia-persistenced.service")
    vm.wait_unit("kubelet.service")
    vm.run("true </dev/nvidia0 && ldconfig -p | grep -q libcuda.so.1", check=True)
    assert vm.run("pgrep -x dockerd || pgrep -x containerd").rc == 1
    helper = vm.output("stat -c '%a %U' /opt/nvidia/current/bin/nvidia-modprobe")
    assert helper == "4755 root"
    assert vm.output("find /opt/nvidia -name '*.partial'") == ""

    # The next boot has no registry, and no network either.
    vm.run("systemctl mask -q docker-registry; ip link set lo down; sync", check=True)
    vm.power_cut()
    vm.boot()
    assert vm.run("pgrep -x docker-registry").rc == 1
    document = road.wait_phase(vm, "ready")
    assert document["report"] is None or all(
        step["step"] not in ("pull-image", "install-tree") for step in document["report"]["steps"]
    )
    vm.wait_unit("kubelet.service")
