# SPDX-License-Identifier: Apache-2.0
"""An update as tests walk through it: who updates, who reboots, and how long the reboot was held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.host import road, standins
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.host.bed import Host

NEXT = "/run/nextos"
LOGIND = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
REBOOT = f"busctl call {LOGIND} Reboot b false"
ENGINE = "com.coreos.update1 /com/coreos/update1 com.coreos.update1.Manager"
# What anybody may say on the bus, and `locksmithctl send-need-reboot` does.
FAKE = (
    "busctl emit /com/coreos/update1 com.coreos.update1.Manager StatusUpdate xdssx "
    "0 0.0 UPDATE_STATUS_UPDATED_NEED_REBOOT 9999.9.9 0"
)
UNPRIVILEGED = "setpriv --reuid=65534 --regid=65534 --clear-groups"
# What locksmithd says of itself.
COORDINATOR = "/run/update-engine/coordinator.conf"
_LOCKSMITH = """[Unit]
Description=Locksmith (stand-in)
After=update-engine.service
[Service]
ExecStart=/usr/bin/python3 /etc/bed/locksmithd.py
"""
_POLICY = "/etc/dbus-1/system.d/com.coreos.update1.conf"
_RELOAD = "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig"
_REFUSAL = '<policy context="mandatory"><deny send_destination="com.coreos.update1"/></policy></busconfig>'
_ASKED, _GONE = "The system will reboot now!", "System is rebooting."


def configuration(
    maximum: float = 60, driver: Mapping[str, object] | None = None, **more: Mapping[str, object]
) -> str:
    """One that looks ahead at once; `maximum` is how long a reboot may be held."""
    sections: dict[str, Any] = {
        "stage": {"spread": 0, "next-file": NEXT},
        "reboot": {"maximum": maximum},
        "image": {"stall-timeout": 2, "connect-timeout": 2},
    }
    for name, section in more.items():
        sections.setdefault(name, {}).update(section)
    text = road.configuration(**sections)
    first = {"version": road.DRIVER, **(driver or {})}
    return text.replace(
        f'version = "{road.DRIVER}"\n',
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in first.items()),
    )


def tree(version: str = road.NEXT[0], driver: str = road.DRIVER) -> str:
    return f"/opt/nvidia/{driver}/{version}"


# -- who updates, and who reboots ------------------------------------------------------------------


def prepare(host: Host) -> None:
    """A locksmithd that somebody can start."""
    host.put(standins.SOURCES / "locksmithd.py", "/etc/bed/locksmithd.py")
    host.write("/etc/systemd/system/locksmithd.service", _LOCKSMITH)
    host.systemctl("daemon-reload")


def spoil(host: Host, word: str) -> None:
    """A fault of update_engine, by the word that its stand-in has for it."""
    host.tell_updater(word)


def refuse(host: Host, *, everybody: bool = True) -> None:
    """The bus lets nobody call update_engine any more, root neither; or as it was before."""
    policy = (standins.SOURCES / "com.coreos.update1.conf").read_text()
    host.write(_POLICY, policy.replace("</busconfig>", _REFUSAL) if everybody else policy)
    host.run(_RELOAD, check=True)


def finish(
    host: Host, version: str = road.NEXT[0], kernel: str = road.NEXT[1], *, named: bool = True
) -> None:
    """The update is on disk and the next boot takes it; `named`: something tells its kernel, too."""
    if named:
        host.write(NEXT, f"VERSION_ID={version}\nKERNEL={kernel}\n")
    host.update(version, kernel)
    host.update_engine("UPDATED_NEED_REBOOT", version)


def again(host: Host, config: str) -> None:
    """A host that did not reboot, back to where no update was ever heard of and its driver is in force."""
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket")
    refuse(host, everybody=False)
    host.update(*RELEASE)
    host.kmod_busy()
    others = f"find /opt/nvidia/* -mindepth 1 -maxdepth 1 -name '[0-9]*' ! -path {tree(RELEASE[0])}"
    left = f"{NEXT} /run/update_engine_autoupdate_completed /run/reboot-required /var/lib/nvidiad/*"
    host.run(f"{others} -exec rm -rf {{}} +; rm -rf {left}; {road.FORGET}", check=True)
    host.systemctl("reset-failed")
    host.systemctl("restart", "update-engine.service")
    host.run("systemctl kill --signal=CONT registry@5000.service")  # where it runs
    host.run("systemctl restart registry@5000.service", check=True)
    host.registry_start()
    host.write("/etc/nvidiad/nvidiad.toml", config)
    host.systemctl("start", "nvidiad.socket", "nvidiad.service")
    host.systemctl("start", "--no-block", "kubelet.service")
    road.wait_ready(host)


# -- what nvidiad says -----------------------------------------------------------------------------


def stage(document: dict[str, Any]) -> dict[str, Any]:
    return document["stages"][0] if document["stages"] else {}


def wait_stage(host: Host, state: str, code: str | None = None) -> dict[str, Any]:
    """Wait until the next driver is so far (and nvidiad names this problem); the document that says so."""

    def holds(document: dict[str, Any]) -> bool:
        found = stage(document)
        said = (found.get("problem") or {}).get("code")
        return found.get("state") == state and code in (None, said)

    return road.wait_status(host, holds, f"the stage is {state}" + (f" with {code}" if code else ""))


def wait_held(host: Host, *, held: bool = True) -> dict[str, Any]:
    """Wait until the delay lock is taken, or given back."""
    what = "taken" if held else "given back"

    def holds(document: dict[str, Any]) -> bool:
        return bool((document["reboot"] or {}).get("held")) is held

    return road.wait_status(host, holds, f"the delay lock is {what}")


def locks(host: Host) -> list[str]:
    """The delay locks of nvidiad that logind knows of: why each was taken."""
    said = host.run(f"busctl -j call {LOGIND} ListInhibitors", check=True).json()
    return [str(entry[2]) for entry in said["data"][0] if entry[1] == "nvidiad"]


def look(host: Host, *, over: bool = True) -> dict[str, Any]:
    """Let nvidiad look once more; what it says of the host as it is now, with `over` when all is done."""
    document = road.status(host)
    # The first time it may have been under way already, and have seen the host as it was.
    for _ in range(2):
        before = document["looked"] or 0.0

        def holds(said: dict[str, Any], before: float = before) -> bool:
            return said["looked"] > before and not (over and said["plan"]["steps"])

        host.nvidiad("reconcile", check=True)
        document = road.wait_status(host, holds, "nvidiad has looked again")
    return document


def released(host: Host) -> int:
    """How often nvidiad has given its lock back in this boot."""
    done = [entry.get("NVIDIAD_STEP") for entry in host.journal("nvidiad.service")]
    return done.count("release-reboot")


def asked_at(host: Host, boot: str = "-1") -> float:
    """When the reboot was asked for with which that boot ended, on the clock on the wall."""
    return road.journal_time(host, "systemd-logind.service", _ASKED, boot=boot, wall=True)


def gone_at(host: Host, boot: str = "-1") -> float:
    """When logind let it go."""
    return road.journal_time(host, "systemd-logind.service", _GONE, boot=boot, last=True, wall=True)


def held_for(host: Host, boot: str = "-1") -> float:
    """How long logind held the reboot with which that boot ended, in seconds."""
    return gone_at(host, boot) - asked_at(host, boot)
