# SPDX-License-Identifier: Apache-2.0
"""Beside the driver: its GPUs in /proc, the nodes and sockets that containers get, and the words in /run."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.nouns.surroundings import Inventory, Surroundings, Word
from nvidiad.thought import cdi, surroundings
from nvidiad.world import files

if TYPE_CHECKING:
    from nvidiad.nouns.model import Tree
    from nvidiad.nouns.surroundings import GpuIdentity

SPECIFICATION = Path("run/cdi/nvidia.yaml")
"""As NVIDIA's own generator calls it: two files that describe one device are of use to no engine."""
# Not all that is there: a driver of Kubernetes's DRA writes and removes a file for every pod.
_GENERATED = ("nvidia*.yaml", "nvidia*.json")
WORDS = Path("run/nvidiad")
CDI, HEALTH, FABRIC = "cdi", "health", "fabric"
_NODES = ("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools")
_SOCKETS = ("run/nvidia-persistenced/socket", "run/nvidia-fabricmanager/socket")
_LIMIT = 1 << 20
# What the firmware of the InfiniBand card says behind which NVSwitches of the fifth NVLink are.
_MANAGED = b"SW_MNG"


def told_by(root: Path) -> tuple[Path, ...]:
    """The files whose change is news."""
    specifications = (root / SPECIFICATION.with_name(name) for name in _GENERATED)
    return (*specifications, *(root / WORDS / f"{name}.json" for name in (CDI, HEALTH, FABRIC)))


class LinuxSurroundings:
    """The `Surroundings` port."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def look(self, tree: Tree | None) -> Surroundings:
        """What is there; `tree` is that of the driver in force, None where none is."""
        return Surroundings(
            inventory=self.inventory(tree) if tree else None,
            cdi=self.word(CDI),
            specification=self.specification(),
            rival=self.rival() if tree else "",
            health=self.word(HEALTH),
            fabric=self.word(FABRIC),
        )

    def inventory(self, tree: Tree) -> Inventory:
        """What a specification for this tree is made from."""
        return Inventory(
            driver=tree.build.driver,
            tree=tree.path,
            identity=tree.identity,
            architecture=tree.architecture,
            gpus=self.gpus(),
            nodes=tuple(f"/dev/{name}" for name in _NODES if self._is(f"dev/{name}", stat.S_ISCHR)),
            sockets=tuple(f"/{path}" for path in _SOCKETS if self._is(path, stat.S_ISSOCK)),
        )

    def gpus(self) -> tuple[GpuIdentity, ...]:
        """The GPUs that the driver has, by address, which is the order of NVML."""
        try:
            folders = sorted((self.root / "proc/driver/nvidia/gpus").iterdir())
        except OSError:
            return ()
        return tuple(
            surroundings.identity(folder.name, files.text(folder / "information"), index)
            for index, folder in enumerate(folders)
        )

    def specification(self) -> str:
        """The SHA-256 of the specification that is there; empty where there is none."""
        try:
            return hashlib.sha256(files.read_small(self.root / SPECIFICATION, _LIMIT)).hexdigest()
        except OSError:
            return ""

    def rival(self) -> str:
        """Another file that describes the same devices; what is in /etc/cdi gives way to what is in /run."""
        ours = self.root / SPECIFICATION
        for pattern in ("*.json", "*.yaml"):
            for file in sorted(ours.parent.glob(pattern)):
                with contextlib.suppress(OSError):
                    if file != ours and cdi.claims(
                        files.read_small(file, _LIMIT).decode("utf-8", "replace")
                    ):
                        return str(file)
        return ""

    def word(self, name: str) -> Word:
        """The word of a program; what cannot be understood was never said."""
        try:
            return surroundings.decode(files.read_small(self.root / WORDS / f"{name}.json", _LIMIT).decode())
        except (OSError, ValueError):
            return Word()

    def leave(self, name: str, word: Word | None) -> None:
        """Leave a word for whoever looks next, or take it back."""
        place = self.root / WORDS / f"{name}.json"
        with files.explained(f"writing '{place}'", Code.INTERNAL):
            if word is None:
                place.unlink(missing_ok=True)
            else:
                files.keep(place, surroundings.encode(word))

    def switches(self) -> bool:
        """Whether the driver has NVSwitches that a fabric manager must program."""
        with contextlib.suppress(OSError):
            return any((self.root / "proc/driver/nvidia-nvswitch/devices").iterdir())
        return False

    def managed_switches(self) -> bool:
        """Whether there are NVSwitches that only NVIDIA's subnet manager reaches, over InfiniBand."""
        for path in self.root.glob("sys/class/infiniband/*/device/vpd"):
            # Read from the card, which may refuse.
            with contextlib.suppress(OSError), path.open("rb") as file:
                if _MANAGED in file.read(4096):
                    return True
        return False

    def managed(self) -> bool:
        """Whether somebody's fabric manager runs."""
        return self._is(_SOCKETS[1], stat.S_ISSOCK)

    def _is(self, path: str, kind: object) -> bool:
        try:
            mode = (self.root / path).lstat().st_mode
        except OSError:
            return False
        return bool(kind(mode)) if callable(kind) else False
