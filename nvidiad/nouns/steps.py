# SPDX-License-Identifier: Apache-2.0
"""The steps: each a small frozen value that can describe itself; the engine's one match does them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.model import Build, ModuleFile


class PullImage(Value):
    """Fetch an image by digest, so that what is run later is what was resolved now."""

    reference: str
    build: Build
    gentle: bool = False
    """Nothing waits for it: what else the host does comes first."""

    def describe(self) -> str:
        return f"pull '{self.reference}'"


class InstallTree(Value):
    """Run the pulled image's installer and verify the tree that it leaves."""

    reference: str
    build: Build
    driver: str = ""
    """The wanted driver, which a CUDA must not be too new for; empty where that is not asked."""
    gentle: bool = False
    """Nothing waits for it: what else the host does comes first."""

    def describe(self) -> str:
        return f"install '{self.build}' from '{self.reference}' and verify it"


class RenewTree(Value):
    """Replace a tree that does not come up, or does not fit, as soon as its tag names another image."""

    reference: str
    build: Build
    tree: str
    digest: str
    """Of the image that the tree was installed from; empty where nobody remembers."""

    def describe(self) -> str:
        return f"look for another image of '{self.reference}'"


class RemoveTree(Value):
    """Remove a tree that nothing on this host needs."""

    tree: str

    def describe(self) -> str:
        return f"remove '{self.tree}'"


class WriteGates(Value):
    """Make systemd hold these units until nvidia.service is up, and no others."""

    units: tuple[str, ...]

    def describe(self) -> str:
        return f"order {', '.join(self.units) or 'no unit'} after nvidia.service"


class StartUnit(Value):
    name: str
    wait: bool = True
    """Wait for the end of the start job; gated units may take as long as they like."""

    def describe(self) -> str:
        return f"start {self.name}"


class ReloadUnit(Value):
    name: str

    def describe(self) -> str:
        return f"reload {self.name}"


class StopUnit(Value):
    """Stop a unit for a change of the driver; it is started again after that."""

    name: str

    def describe(self) -> str:
        return f"stop {self.name}"


class RaiseDelay(Value):
    """Let logind wait this long for delay locks; what others need is never lowered."""

    seconds: float

    def describe(self) -> str:
        return f"let logind wait {self.seconds:.0f} s for delay locks"


class HoldReboot(Value):
    """Take a delay lock of logind: a reboot that is asked for waits for it."""

    why: str

    def describe(self) -> str:
        return f"hold reboots: {self.why}"


class ReleaseReboot(Value):
    """Give the delay lock back."""

    why: str

    def describe(self) -> str:
        return f"let reboots go: {self.why}"


class RebootHost(Value):
    """Reboot into the OS that waits for it."""

    def describe(self) -> str:
        return "reboot the host"


class SelectTree(Value):
    """Let `current` name this tree."""

    tree: str
    link: str

    def describe(self) -> str:
        return f"point '{self.link}' to '{self.tree}'"


class MountOverlay(Value):
    lower: str
    target: str

    def describe(self) -> str:
        return f"overlay '{self.lower}' on '{self.target}'"


class UnmountOverlay(Value):
    target: str

    def describe(self) -> str:
        return f"take the overlay off '{self.target}'"


class ConfigureLinker(Value):
    """Write our ld.so.conf.d file; None removes it."""

    text: str | None

    def describe(self) -> str:
        return "remove the linker configuration" if self.text is None else "write the linker configuration"


class RefreshLinkerCache(Value):
    def describe(self) -> str:
        return "refresh the linker cache"


class SetFirmwarePath(Value):
    path: str

    def describe(self) -> str:
        return f"set the firmware path to '{self.path}'" if self.path else "clear the firmware path"


class LoadHostModules(Value):
    """Modules of the OS itself that the driver needs; those in `optional` may be absent."""

    required: tuple[str, ...]
    optional: tuple[str, ...]

    def describe(self) -> str:
        return f"load host modules {', '.join(self.required + self.optional)}"


class LoadModule(Value):
    module: ModuleFile
    parameters: tuple[str, ...]
    tree: str

    def describe(self) -> str:
        return f"load {self.module.name} from '{self.module.path}'"


class UnloadModule(Value):
    name: str

    def describe(self) -> str:
        return f"unload {self.name}"


class MakeNodes(Value):
    def describe(self) -> str:
        return "make the device nodes"


class RemoveNodes(Value):
    def describe(self) -> str:
        return "remove the device nodes"


class CheckDriver(Value):
    """Compare what is loaded, exposed and in /dev with what is wanted."""

    driver: str
    directory: str
    libraries: tuple[str, ...]
    """What the linker cache must name in this directory."""

    def describe(self) -> str:
        return f"check that driver {self.driver} is the one loaded"


Step = (
    PullImage
    | InstallTree
    | RenewTree
    | RemoveTree
    | WriteGates
    | StopUnit
    | RaiseDelay
    | HoldReboot
    | ReleaseReboot
    | RebootHost
    | StartUnit
    | ReloadUnit
    | SelectTree
    | MountOverlay
    | UnmountOverlay
    | ConfigureLinker
    | RefreshLinkerCache
    | SetFirmwarePath
    | LoadHostModules
    | LoadModule
    | UnloadModule
    | MakeNodes
    | RemoveNodes
    | CheckDriver
)


def step_name(step: Step) -> str:
    """The step's name in logs and documents: `PullImage` is `pull-image`."""
    name = type(step).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")
