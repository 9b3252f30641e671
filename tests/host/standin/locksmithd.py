#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in locksmithd with the strategy "reboot" and nobody logged in: an update waits, and it reboots."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from jeepney import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    DBusAddress,
    MatchRule,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    open_dbus_connection,
)

ENGINE = DBusAddress("/com/coreos/update1", "com.coreos.update1", "com.coreos.update1.Manager")
LOGIND = DBusAddress("/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager")
NEED_REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"
PLACE = Path("/run/update-engine/coordinator.conf")


class Coordinator:
    """The file that says who reboots this host; its lock says that he is alive."""

    def __init__(self) -> None:
        PLACE.parent.mkdir(exist_ok=True)
        self.locks: list[object] = []

    def write(self, state: str) -> None:
        beside = PLACE.with_name(f".coordinator.conf.{state}")
        file = beside.open("w")
        file.write(f"NAME=locksmithd\nSTRATEGY=reboot\nSTATE={state}")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beside.rename(PLACE)
        self.locks = [file]


def main() -> None:
    coordinator = Coordinator()
    coordinator.write("starting")
    bus = open_dbus_connection("SYSTEM")
    # Not the sender: the real one, too, believes whoever says it.
    rule = MatchRule(type="signal", interface=ENGINE.interface, member="StatusUpdate")
    bus.send_and_get_reply(message_bus.AddMatch(rule))
    coordinator.write("running")
    with bus.filter(rule, bufsize=64) as told:
        status = bus.send_and_get_reply(new_method_call(ENGINE, "GetStatus")).body
        while len(status) != 5 or status[2] != NEED_REBOOT:
            status = bus.recv_until_filtered(told).body
    coordinator.write("reboot-planned")
    print("asking logind for the reboot", flush=True)
    # It looks at no answer, and sleeps for a week.
    bus.send(new_method_call(LOGIND, "Reboot", "b", (False,)))
    coordinator.write("rebooting")
    time.sleep(7 * 24 * 3600)


if __name__ == "__main__":
    main()
