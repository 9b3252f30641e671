#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in update_engine: owns com.coreos.update1 and is in whatever state a test writes to its pipe."""

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
IDLE = "UPDATE_STATUS_IDLE"
NEED_REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"

State = tuple[int, float, str, str, int]


def notify_ready() -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")


def answer(connection: Any, message: Any, state: State) -> State:
    """Reply to one method call as update_engine does; the state afterwards."""
    fields = message.header.fields
    member = fields.get(HeaderFields.member)
    if fields.get(HeaderFields.interface) == "org.freedesktop.DBus.Introspectable":
        arguments = "".join(f'<arg type="{kind}" direction="out"/>' for kind in "xdssx")
        methods = '<method name="AttemptUpdate"/><method name="ResetStatus"/>'
        methods += f'<method name="GetStatus">{arguments}</method>'
        signal = (
            '<signal name="StatusUpdate">'
            + "".join(f'<arg type="{kind}"/>' for kind in "xdssx")
            + "</signal>"
        )
        xml = f'<node name="{PATH}"><interface name="{INTERFACE}">{methods}{signal}</interface></node>'
        connection.send(new_method_return(message, "s", (xml,)))
    elif fields.get(HeaderFields.path) != PATH or fields.get(HeaderFields.interface, INTERFACE) != INTERFACE:
        connection.send(
            new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (f"no {member} here",))
        )
    elif member == "GetStatus":
        connection.send(new_method_return(message, "xdssx", state))
    elif member == "AttemptUpdate":
        connection.send(new_method_return(message))
    elif member == "ResetStatus" and state[2] in (IDLE, NEED_REBOOT):
        connection.send(new_method_return(message))  # and no signal, as the real one
        return (state[0], 0.0, IDLE, "0.0.0", 0)
    else:
        connection.send(new_error(message, "org.freedesktop.DBus.Error.Failed", "s", (f"cannot {member}",)))
    return state


def main() -> None:
    if not Path(PIPE).exists():
        os.mkfifo(PIPE, 0o600)
    pipe = os.open(PIPE, os.O_RDWR | os.O_NONBLOCK)
    connection = open_dbus_connection("SYSTEM")
    connection.send_and_get_reply(message_bus.RequestName(NAME))
    emitter = DBusAddress(PATH, interface=INTERFACE)
    state: State = (0, 0.0, IDLE, "0.0.0", 0)
    connection.send(new_signal(emitter, "StatusUpdate", "xdssx", state))
    notify_ready()
    while True:
        readable, _, _ = select.select([pipe, connection.sock], [], [])
        if pipe in readable:
            # One line a state, "OPERATION VERSION PROGRESS SIZE SIGNAL"; announced unless SIGNAL is 0.
            for line in os.read(pipe, 65536).decode().splitlines():
                operation, version, progress, size, signal = line.split()
                version = "" if version == '""' else version
                state = (int(time.time()), float(progress), operation, version, int(size))
                if signal != "0":
                    connection.send(new_signal(emitter, "StatusUpdate", "xdssx", state))
        if connection.sock in readable:
            message = connection.receive()
            if message.header.message_type is MessageType.method_call:
                state = answer(connection, message, state)


if __name__ == "__main__":
    main()
