#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in update_engine: owns com.coreos.update1 and is in whatever state a test writes to its pipe.

One line a state, "OPERATION VERSION PROGRESS SIZE SIGNAL"; announced unless SIGNAL is 0. Faults are one word
a line: "mute" answers no GetStatus any more, "speak" answers those that wait, too; "leave" gives the name on
the bus away, "return" takes it again.
"""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path
from typing import Any

from jeepney import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    DBusAddress,
    HeaderFields,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.io.blocking import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    open_dbus_connection,
)

NAME = "com.coreos.update1"
PATH = "/com/coreos/update1"
INTERFACE = "com.coreos.update1.Manager"
PIPE = "/run/update-engine.pipe"
# What is staged, the real one knows after a restart by this alone.
MARKER = Path("/run/update_engine_autoupdate_completed")
IDLE = "UPDATE_STATUS_IDLE"
NEED_REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"

State = tuple[int, float, str, str, int]


def notify_ready() -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")


class Engine:
    """What it says, and whether it does."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.state: State = (0, 0.0, NEED_REBOOT if MARKER.exists() else IDLE, "0.0.0", 0)
        self.mute = False
        self.waiting: list[Any] = []

    def obey(self, line: str) -> None:
        """Be in the state, or have the fault, of one line."""
        match line.split():
            case ["mute"]:
                self.mute = True
            case ["speak"]:
                self.mute = False
                for message in self.waiting:
                    self.answer(message)
                self.waiting.clear()
            case ["leave"]:
                self.connection.send_and_get_reply(message_bus.ReleaseName(NAME))
            case ["return"]:
                self.connection.send_and_get_reply(message_bus.RequestName(NAME))
                self.announce()
            case [operation, version, progress, size, signal]:
                self.become(operation, "" if version == '""' else version, float(progress), int(size))
                if signal != "0":
                    self.announce()

    def become(self, operation: str, version: str, progress: float, size: int) -> None:
        self.state = (int(time.time()), progress, operation, version, size)
        if operation == NEED_REBOOT:
            MARKER.touch()
        else:
            MARKER.unlink(missing_ok=True)

    def announce(self) -> None:
        emitter = DBusAddress(PATH, interface=INTERFACE)
        self.connection.send(new_signal(emitter, "StatusUpdate", "xdssx", self.state))

    def answer(self, message: Any) -> None:
        """Reply to one method call as update_engine does."""
        connection, fields = self.connection, message.header.fields
        member = fields.get(HeaderFields.member)
        if fields.get(HeaderFields.interface) == "org.freedesktop.DBus.Introspectable":
            connection.send(new_method_return(message, "s", (introspection(),)))
        elif (
            fields.get(HeaderFields.path) != PATH
            or fields.get(HeaderFields.interface, INTERFACE) != INTERFACE
        ):
            unknown = "org.freedesktop.DBus.Error.UnknownMethod"
            connection.send(new_error(message, unknown, "s", (f"no {member} here",)))
        elif member == "GetStatus" and self.mute:
            self.waiting.append(message)
        elif member == "GetStatus":
            connection.send(new_method_return(message, "xdssx", self.state))
        elif member == "AttemptUpdate":
            connection.send(new_method_return(message))
        elif member == "ResetStatus" and self.state[2] in (IDLE, NEED_REBOOT):
            connection.send(new_method_return(message))  # and no signal, as the real one
            checked = self.state[0]
            self.become(IDLE, "0.0.0", 0.0, 0)
            self.state = (checked, *self.state[1:])
        else:
            failed = "org.freedesktop.DBus.Error.Failed"
            connection.send(new_error(message, failed, "s", (f"cannot {member}",)))


def introspection() -> str:
    """The interface as its XML has it."""
    arguments = "".join(f'<arg type="{kind}" direction="out"/>' for kind in "xdssx")
    methods = '<method name="AttemptUpdate"/><method name="ResetStatus"/>'
    methods += f'<method name="GetStatus">{arguments}</method>'
    told = "".join(f'<arg type="{kind}"/>' for kind in "xdssx")
    signal = f'<signal name="StatusUpdate">{told}</signal>'
    return f'<node name="{PATH}"><interface name="{INTERFACE}">{methods}{signal}</interface></node>'


def main() -> None:
    if not Path(PIPE).exists():
        os.mkfifo(PIPE, 0o600)
    pipe = os.open(PIPE, os.O_RDWR | os.O_NONBLOCK)
    connection = open_dbus_connection("SYSTEM")
    connection.send_and_get_reply(message_bus.RequestName(NAME))
    engine = Engine(connection)
    engine.announce()
    notify_ready()
    while True:
        readable, _, _ = select.select([pipe, connection.sock], [], [])
        if pipe in readable:
            for line in os.read(pipe, 65536).decode().splitlines():
                engine.obey(line)
        # One read may bring several messages, and of those after the first no descriptor tells.
        while connection.sock in readable:
            try:
                message = connection.receive(timeout=0)
            except TimeoutError:
                break
            if message.header.message_type is MessageType.method_call:
                engine.answer(message)


if __name__ == "__main__":
    main()
