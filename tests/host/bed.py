# SPDX-License-Identifier: Apache-2.0
"""What tests of nvidiad run on: a machine with nvidiad, a GPU, registries and an update engine."""

from __future__ import annotations

import configparser
import errno
import json
import os
import re
import shlex
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.beds.common import CHECKOUT, run_checked
from tests.host import registry
from tests.host.machine import BOOT, GPU, CommandError, Machine, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NVIDIAD = "/opt/nvidiad/bin/nvidiad"


class Host(Machine):
    """A machine of the host bed with everything that a test of nvidiad commands."""

    # -- nvidiad ----------------------------------------------------------------------------------------

    def install_nvidiad(
        self, config: str | None = None, *, checkout: Path = CHECKOUT, enable: bool = True
    ) -> list[str]:
        """Install the checkout's package, entry script, units and configuration; the units' names."""
        site = f"/opt/nvidiad/lib/{self.python}/site-packages"
        shutil.rmtree(self.path(f"{site}/nvidiad"), ignore_errors=True)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / "nvidiad", self.path(f"{site}/nvidiad"), ignore=skip)
        parser = configparser.ConfigParser()
        parser.read(checkout / "setup.cfg")
        scripts = parser.get(
            "options.entry_points", "console_scripts", fallback="nvidiad = nvidiad.cli:main"
        )
        for name, module, function in re.findall(
            r"^([\w-]+)\s*=\s*([\w.]+):(\w+)", scripts.strip(), re.MULTILINE
        ):
            text = f"from {module} import {function}\nraise SystemExit({function}())\n"
            self.write(f"/opt/nvidiad/bin/{name}", f"#!/opt/nvidiad/bin/python3\n{text}", 0o755)
        units = self._put_units(checkout / "units")
        if config is not None:
            self.write("/etc/nvidiad/nvidiad.toml", config)
        compiled = ["/opt/nvidiad/bin/python3", "-m", "compileall", "-q", f"{site}/nvidiad"]
        settle = "systemd-sysusers; systemd-tmpfiles --create --exclude-prefix=/dev; systemctl daemon-reload"
        self.run(f"{shlex.join(compiled)}; {settle}", check=True)
        if enable:
            self.enable(units)
        return units

    def enable(self, units: Iterable[str]) -> None:
        """Enable those of the units that the presets enable; nothing is started."""
        place = "/etc/systemd/system"
        wanted = [unit for unit in units if "[Install]" in self.read(f"{place}/{unit}")]
        if wanted:
            self.run("systemctl", "preset", "-q", *wanted, check=True)

    def nvidiad(self, *arguments: str, timeout: float = 60, check: bool = False) -> Result:
        return self.run(NVIDIAD, *arguments, timeout=timeout, check=check)

    def _put_units(self, source: Path) -> list[str]:
        if not source.is_dir():
            return []
        installed = []
        for file in sorted(path for path in source.rglob("*") if path.is_file() or path.is_symlink()):
            relative = file.relative_to(source)
            # /usr is read-only on a host: what could lie in /usr/lib lies in /etc.
            target = (
                Path("/etc", *relative.parts[1:]) if relative.parts[0] == "etc" else Path("/etc", relative)
            )
            self.put(file, str(target))
            self.path(str(target)).chmod(0o644)
            if target.parent == Path("/etc/systemd/system") and target.suffix in (
                ".service",
                ".socket",
                ".timer",
                ".path",
            ):
                installed.append(target.name)
        return installed

    # -- the GPU, and the stand-in for kmod -------------------------------------------------------------

    def gpu_add(self, slot: str = GPU[0], device: str = GPU[1], *, announce: bool = True) -> None:
        """A GPU appears now and stays for later boots, with the event that udevd would send."""
        run_checked([str(BOOT / "gpu.sh"), str(self.path("/")), "add", slot, device], "gpu.sh")
        gpus = self.dir / "gpus"
        gpus.write_text(gpus.read_text() + f"{slot} {device}\n")
        if announce:
            self.uevent("add", f"/devices/pci0000:00/{slot}")

    def gpu_remove(self, slot: str = GPU[0], *, announce: bool = True) -> None:
        run_checked([str(BOOT / "gpu.sh"), str(self.path("/")), "remove", slot], "gpu.sh")
        gpus = self.dir / "gpus"
        gpus.write_text(
            "".join(f"{line}\n" for line in gpus.read_text().splitlines() if not line.startswith(slot))
        )
        if announce:
            self.uevent("remove", f"/devices/pci0000:00/{slot}", PCI_SLOT_NAME=slot)

    def uevent(self, action: str, devpath: str, *, subsystem: str = "pci", **properties: str) -> None:
        """Broadcast an event as udevd does after its rules, for pyudev monitors of the source "udev"."""
        words = [f"{key}={value}" for key, value in properties.items()]
        self.run("/run/bed/uevent", action, devpath, subsystem, *words, check=True)

    def kmod_log(self, mentioning: str = "nvidia") -> list[dict[str, Any]]:
        """The calls that the stand-in kmod had in this boot: t (monotonic), seconds, pid, argv, rc, said.

        systemd and logind have some of their own at every boot, hence the word that one must contain.
        """
        text = self.read("/run/kmod.log") if self.exists("/run/kmod.log") else ""
        calls = [json.loads(line) for line in text.splitlines()]
        return [call for call in calls if any(mentioning in word for word in call["argv"])]

    def kmod_delay(self, **seconds: float) -> None:
        """From now on these programs take so long, as in kmod_delay(insmod=0.5); without arguments none."""
        self.write("/run/kmod.delay", "".join(f"{verb} {value}\n" for verb, value in seconds.items()))

    def kmod_fail(self, *rules: tuple[str, str, str]) -> None:
        """From now on (program, module or "*", text) fails with the text; without arguments none does."""
        self.write("/run/kmod.fail", "".join(f"{' '.join(rule)}\n" for rule in rules))

    def kmod_busy(self, *modules: str) -> None:
        """From now on somebody holds these modules: rmmod refuses, refcnt is 1; without arguments none."""
        for name in ("nvidia", "nvidia_uvm", "nvidia_modeset"):
            held = f"/sys/module/{name}/holders"
            if self.exists(held):
                count = len(list(self.path(held).iterdir())) + (name in modules)
                self.path(f"/sys/module/{name}/refcnt").write_text(f"{count}\n")
        if modules:
            self.write("/run/kmod.busy", "\n".join(modules))
        else:
            self.path("/run/kmod.busy").unlink(missing_ok=True)

    def modules(self) -> list[str]:
        """NVIDIA's modules that are loaded (logind loads drm at boot, which is no concern of a test)."""
        return sorted(
            path.name for path in self.path("/sys/module").iterdir() if path.name.startswith("nvidia")
        )

    # -- the update engine ------------------------------------------------------------------------------

    def update_engine(
        self, operation: str, version: str = "0.0.0", *, progress: float = 0.0, signalled: bool = True
    ) -> None:
        """Put the update_engine in a state, as in update_engine("UPDATED_NEED_REBOOT", "3602.2.0")."""
        name = operation if operation.startswith("UPDATE_STATUS_") else f"UPDATE_STATUS_{operation}"
        self.tell_updater(f"{name} {version or chr(34) * 2} {progress} 0 {int(signalled)}")

    def tell_updater(self, line: str) -> None:
        """Write a line to the stand-in updater; CommandError where nobody reads it, as the host is going."""

        def told() -> bool:
            try:
                # Without O_NONBLOCK that would wait for a reader for ever.
                pipe = os.open(self.path("/run/update-engine.pipe"), os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENXIO):
                    return False
                raise
            with os.fdopen(pipe, "w") as file:
                file.write(f"{line}\n")
            return True

        self.wait(told, "update-engine.service listens", 1)

    # -- registries and images --------------------------------------------------------------------------

    def registry_start(self, *kinds: str) -> None:
        units = self._registries(kinds)
        self.systemctl("reset-failed", *units, check=False)
        self.systemctl("start", *units)
        for kind in kinds or ("plain",):
            address = "127.0.0.1" if kind == "plain" else "10.99.0.1"
            probe = f"until (: </dev/tcp/{address}/{registry.PORTS[kind]}) 2>/dev/null; do sleep .02; done"
            self.run(probe, timeout=20, check=True)

    def registry_stop(self, *kinds: str) -> None:
        self.systemctl("stop", *self._registries(kinds))

    def registry_freeze(self, *kinds: str) -> None:
        """The registry keeps its connections and says nothing more."""
        for unit in self._registries(kinds):
            self.kill(unit, signal.SIGSTOP)

    def registry_thaw(self, *kinds: str) -> None:
        for unit in self._registries(kinds):
            self.kill(unit, signal.SIGCONT)

    def registry_kill(self, *kinds: str) -> None:
        """The registry dies in the middle of what it does, and stays away."""
        for unit in self._registries(kinds):
            self.kill(unit, signal.SIGKILL)

    def image(
        self,
        reference: str,
        files: Mapping[str, str | bytes | Path],
        dockerfile: str,
        *,
        labels: Mapping[str, str] | None = None,
        push: bool = True,
    ) -> str:
        """Build an image from files (name there: content, or a path here); its digest when pushed.

        The context always has a static `busybox`, so that a Dockerfile needs no base image to have a shell.
        """
        with tempfile.TemporaryDirectory() as made:
            context = Path(made)
            shutil.copy2(self.path("/usr/bin/busybox"), context / "busybox")
            for name, content in files.items():
                target = context / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    copy = shutil.copytree if content.is_dir() else shutil.copy2
                    copy(content, target)
                else:
                    target.write_bytes(content.encode() if isinstance(content, str) else content)
            (context / "Dockerfile").write_text(dockerfile)
            inside = f"/var/tmp/{context.name}"
            self.put(context, inside)
        words = [f"--label={key}={value}" for key, value in (labels or {}).items()]
        build = {"DOCKER_BUILDKIT": "0"}
        self.run(
            "docker",
            "build",
            "-q",
            "--rm",
            *words,
            "-t",
            reference,
            inside,
            timeout=300,
            env=build,
            check=True,
        )
        self.run("rm", "-rf", inside, check=True)
        return self.push(reference) if push else ""

    def push(self, reference: str) -> str:
        """Push a reference; the digest that the registry gave it."""
        said = self.run("docker", "push", reference, timeout=300, check=True).out
        matched = re.search(r"digest: (sha256:[0-9a-f]{64})", said)
        if matched is None:
            raise CommandError(f"docker push {reference} named no digest:\n{said}")
        return matched[1]

    def _registries(self, kinds: Sequence[str]) -> list[str]:
        return [f"registry@{registry.PORTS[kind]}.service" for kind in kinds or ("plain",)]

    # -- the container engine ---------------------------------------------------------------------------

    def engine_start(self) -> None:
        self.systemctl("start", "docker.socket", "docker.service")

    def engine_stop(self) -> None:
        self.systemctl("stop", "docker.socket", "docker.service")

    def engine_restart(self, *, wait: bool = True) -> None:
        """Also without waiting until it is up again, for who must see that it is away."""
        self.systemctl("reset-failed", "docker.service", check=False)  # its start limit is three in a minute
        self.systemctl("restart", *([] if wait else ["--no-block"]), "docker.service")

    def engine_freeze(self) -> None:
        self.kill("docker.service", signal.SIGSTOP, whom="main")

    def engine_thaw(self) -> None:
        self.kill("docker.service", signal.SIGCONT, whom="main")

    def engine_kill(self) -> None:
        self.kill("docker.service", signal.SIGKILL, whom="main")
