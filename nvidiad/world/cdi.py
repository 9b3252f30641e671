# SPDX-License-Identifier: Apache-2.0
"""The CDI specification as a file: written, removed, made by NVIDIA's toolkit where that is installed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Transient
from nvidiad.thought import cdi
from nvidiad.world import files, process

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOOL = "nvidia-ctk"
_HOOK = "nvidia-cdi-hook"
_PLACES = ("usr/bin", "usr/local/bin", "opt/bin")
_HELP_SECONDS = 5.0
# It asks NVML, and the gated units wait for the end of that.
_SECONDS = 20.0
_LIMIT = 1 << 20
# It must be told that device nodes are not below the driver's root, which versions before 1.15 cannot be.
_OPTIONS = ("--dev-root", "--driver-root", "--format")


class Specification:
    """The `Specification` port."""

    def __init__(self, path: Path, root: Path = Path("/")) -> None:
        """`path` is below `root`."""
        self.root = root
        self.path = root / path
        self._helps: dict[str, str] = {}
        """What the toolkit that was found said of itself: the gated units wait while it is asked."""

    def write(self, text: str) -> None:
        """Let the file have this text, whole or not at all."""
        with files.explained(f"writing '{self.path}'", Code.CDI_FAILED):
            files.keep(self.path, text)

    def remove(self) -> None:
        with files.explained(f"removing '{self.path}'", Code.CDI_FAILED):
            self.path.unlink(missing_ok=True)

    def digest(self, text: str) -> str:
        """As the file has it that has this text."""
        return hashlib.sha256(text.encode()).hexdigest()

    def generator(self) -> str:
        """NVIDIA's toolkit, in a version that can describe a driver that is not below /; empty for none."""
        for place in _PLACES:
            program = self.root / place / _TOOL
            if os.access(program, os.X_OK):
                known = self._helps[str(program)] = _help(str(program))
                return str(program) if all(option in known for option in _OPTIONS) else ""
        return ""

    def generate(self, program: str, tree: str) -> str:
        """What the toolkit says of the driver in this tree, as JSON."""
        argv: Sequence[str] = (
            *(program, "cdi", "generate", "--format=json"),
            *(f"--driver-root={tree}", "--dev-root=/"),
            *self._hook(program),
        )
        said = process.check(argv, timeout=_SECONDS, code=Code.CDI_FAILED).out
        if len(said) > _LIMIT:
            raise Transient(Code.CDI_FAILED, f"'{program}' describes the GPUs in more than {_LIMIT} bytes")
        try:
            hooks = cdi.hooks(cdi.read(said))
        except ValueError as error:
            raise Transient(Code.CDI_FAILED, f"'{program}' describes the GPUs wrongly: {error}") from error
        for hook in hooks:
            path = self.root / hook.lstrip("/")
            if not (path.is_file() and os.access(path, os.X_OK)):
                # Every container would fail of it.
                raise Transient(Code.CDI_FAILED, f"'{program}' wants '{hook}' run, which is no program here")
        return said

    def _hook(self, program: str) -> tuple[str, ...]:
        """Where its hooks are: it looks in $PATH, in which /opt/bin is not."""
        known, here = self._helps.get(program) or _help(program), Path(program)
        hook = here.with_name(_HOOK)
        if "--nvidia-cdi-hook-path" in known and os.access(hook, os.X_OK):
            return (f"--nvidia-cdi-hook-path=/{hook.relative_to(self.root)}",)
        # Before 1.17 the toolkit itself was the hook.
        return (f"--nvidia-ctk-path=/{here.relative_to(self.root)}",) if "--nvidia-ctk-path" in known else ()


def _help(program: str) -> str:
    said = process.run([program, "cdi", "generate", "--help"], timeout=_HELP_SECONDS)
    return said.out + said.err
