# SPDX-License-Identifier: Apache-2.0
"""The clock is set while nvidiad waits for another try: nothing is held for the years that it jumped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.vm import road
from tests.vm.test_power import PARTIALS, complete_trees

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

# Longer than the longest pause of the back-off, on a guest whose only CPU is emulated.
SOON = 120.0


def test_a_clock_that_jumps_holds_nothing_up(vm: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    road.configure(vm)
    vm.run("systemctl enable -q kubelet nvidiad && systemctl start nvidiad", check=True)
    document = road.wait_phase(vm, "waiting")
    assert document["problem"]["code"] == "image-missing"
    for jump in ("-10 years", "+20 years", "-10 years"):
        tries = document["attempts"][0]["count"]
        vm.run(f"date -s '{jump}'", check=True)
        now = float(vm.output("date +%s"))

        def tried(said: dict[str, Any], tries: int = tries, now: float = now) -> bool:
            attempt = said["attempts"][0]
            # While the next one is under way nobody waits for it.
            waits = said["next_try"] is not None
            return bool(waits and attempt["count"] > tries and abs(attempt["last"] - now) < SOON)

        document = road.wait_status(vm, tried, f"another try after {jump}", SOON)
        assert abs(document["next_try"] - now) < SOON
        assert vm.run("systemctl is-active kubelet").out.strip() == "inactive"
    vm.run("date -s '-10 years'", check=True)
    road.publish(vm, [road.payload(tmp_path, "A", bed_kernels.a)])
    road.wait_phase(vm, "ready")
    vm.wait_unit("kubelet.service")
    assert complete_trees(vm)
    assert vm.output(PARTIALS) == ""
