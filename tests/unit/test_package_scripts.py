# SPDX-License-Identifier: Apache-2.0
"""What dpkg runs of the Debian package: its scripts below a directory, in the order that dpkg has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_package import control, make, output

HELPER = "/usr/bin/deb-systemd-helper"
WANTS = "etc/systemd/system/multi-user.target.wants/nvidiad.service"
BUNDLE = "[Service]\nExecStart=/opt/nvidiad/bin/nvidiad run\n"
GATE = "# Written by nvidiad; see nvidiad(8).\n"
_CONFIGURED = '#!/bin/sh\n[ -e "${0%/usr/*}/etc/nvidiad/conf.d" ] || echo \'{"code": "not-configured"}\'\n'
_SAYS = '#!/bin/sh\necho "${0##*/} $*" >>"$CALLS"\n'

pytestmark = [
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed"),
    pytest.mark.skipif(not Path(HELPER).exists(), reason="deb-systemd-helper is not installed"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("package"))


class Host:
    """A root directory, and dpkg as its scripts see it: links are real, starting and stopping is noted."""

    def __init__(self, root: Path, package: Path) -> None:
        self.root, self._package = root, package
        for folder in ("run/systemd/system", "etc/systemd/system", "var/lib", "programs"):
            (root / folder).mkdir(parents=True)
        for name in ("systemctl", "deb-systemd-invoke", "systemd-sysusers", "systemd-tmpfiles"):
            (root / "programs" / name).write_text(_SAYS)
            (root / "programs" / name).chmod(0o755)

    def script(self, name: str, *arguments: str) -> list[str]:
        """Run one of the scripts; what it had started, stopped or restarted."""
        text = re.sub("(?=/(etc|run|var|usr)/)", str(self.root), control(self._package, name))
        # Links name what they name on the host.
        text = text.replace(f"ln -sf {self.root}", "ln -sf ")
        calls = self.root.parent / "calls"
        calls.write_text("")
        path = f"{self.root}/programs:{os.environ['PATH']}"
        environment = {"PATH": path, "CALLS": str(calls), "DPKG_ROOT": str(self.root)}
        # Its programs do nothing outside of dpkg.
        environment["DPKG_MAINTSCRIPT_PACKAGE"] = "nvidiad"
        command = ["sh", "-c", text, name, *arguments]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return [
            line.removeprefix("deb-systemd-invoke ")
            for line in calls.read_text().splitlines()
            if line.startswith("deb-systemd-invoke")
        ]

    def install(self, *before: str) -> list[str]:
        self.script("preinst", "install" if not self.there() else "upgrade", *before)
        output("dpkg-deb", "-x", self._package, self.root)
        self.write("usr/lib/nvidiad/bin/nvidiad", _CONFIGURED)
        (self.root / "usr/lib/nvidiad/bin/nvidiad").chmod(0o755)
        return self.script("postinst", "configure", *before)

    def remove(self) -> list[str]:
        done = self.script("prerm", "remove")
        shutil.rmtree(self.root / "usr")
        return done + self.script("postrm", "remove")

    def purge(self) -> None:
        self.script("postrm", "purge")

    def there(self) -> bool:
        return (self.root / "usr/lib/nvidiad/bin/nvidiad").exists()

    def configure(self) -> None:
        (self.root / "etc/nvidiad/conf.d").mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def has(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def links(self) -> set[str]:
        return {path.name for path in (self.root / "etc").rglob("nvidia*") if path.is_symlink()}


@pytest.fixture
def host(tmp_path: Path, package: Path) -> Host:
    return Host(tmp_path / "root", package)


def test_what_a_bundle_has_put_in_its_place_outlives_the_package(host: Host) -> None:
    host.configure()
    assert host.install() == ["start nvidiad.socket nvidiad.service"]
    assert host.remove() == ["stop nvidiad.socket nvidiad.service"]
    gate = "etc/systemd/system/kubelet.service.d/10-nvidia.conf"
    for name, text in ((gate, GATE), ("etc/systemd/system/nvidiad.service", BUNDLE)):
        host.write(name, text)
    links = host.links()
    host.purge()
    assert "nvidiad.service" in links and host.links() == links
    assert host.has("etc/nvidiad") and host.has(gate)
    # And dpkg has forgotten what it had enabled.
    assert not list((host.root / "var/lib/systemd/deb-systemd-helper-enabled").glob("nvidia*.dsh-also"))


def test_a_bundle_over_the_package_is_not_stopped_with_it(host: Host) -> None:
    host.configure()
    host.install()
    host.write("etc/systemd/system/nvidiad.service", BUNDLE)
    host.write("etc/systemd/system/kubelet.service.d/10-nvidia.conf", GATE)
    assert host.remove() == []
    assert host.has("etc/systemd/system/kubelet.service.d/10-nvidia.conf")


def test_without_a_bundle_a_purge_leaves_nothing(host: Host) -> None:
    host.configure()
    host.install()
    host.remove()
    host.purge()
    assert not host.links() and not host.has("etc/nvidiad")


def test_installed_again_after_a_removal_it_starts_again(host: Host) -> None:
    host.configure()
    host.install()
    host.remove()
    # dpkg names the version whose configuration it has.
    assert host.install("1.0") == ["start nvidiad.socket nvidiad.service"]
    assert host.install("1.0") == ["try-restart nvidiad.service"]


def test_an_upgrade_enables_nothing_that_somebody_has_disabled(host: Host) -> None:
    """Neither where nothing was configured when the package came, and dpkg has enabled nothing itself."""
    host.install()
    assert host.links() == {"nvidiad.service", "nvidiad.socket"}
    host.configure()
    subprocess.run(["systemctl", f"--root={host.root}", "-q", "enable", "nvidiad.service"], check=True)
    assert "nvidia-cdi.service" in host.links()
    subprocess.run(["systemctl", f"--root={host.root}", "-q", "disable", "nvidia-cdi.service"], check=True)
    links = host.links()
    assert host.install("1.0") == ["try-restart nvidiad.service"]
    assert host.links() == links


def test_a_removal_that_failed_starts_the_daemon_and_enables_nothing(host: Host) -> None:
    host.install()
    (host.root / WANTS).unlink()
    links = host.links()
    assert host.script("postinst", "abort-remove") == ["start nvidiad.socket nvidiad.service"]
    assert host.links() == links


def test_no_label_is_left_of_a_package_that_is_gone(host: Host) -> None:
    host.configure()
    host.install()
    ours = "# Written by nvidiad (kubernetes.nfd-file).\n"
    features = "etc/kubernetes/node-feature-discovery/features.d"
    files = {f"{features}/nvidiad": ours, f"{features}/mine": "a=b\n", "run/labels/gpu": ours}
    for name, text in files.items():
        host.write(name, text)
    host.write("etc/nvidiad/conf.d/60-labels.toml", f"kubernetes.nfd-file = '{host.root}/run/labels/gpu'\n")
    host.remove()
    assert [name for name in files if host.has(name)] == [f"{features}/mine"]
