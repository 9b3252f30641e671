# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom, how large a room may be, and what each says of itself."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = Path(__file__).parents[2] / "nvidiad"
RINGS = ("nouns", "thought", "verbs", "world", "rim")
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
# What the inner rings must not touch: the clock, the host, the log.
FORBIDDEN = {
    "nouns": {"os", "time", "logging", "random", "socket", "subprocess", "datetime", "shutil"},
    "thought": {"os", "time", "logging", "random", "socket", "subprocess", "shutil"},
    "verbs": {"os", "time", "logging", "random", "socket", "subprocess", "shutil"},
}
# Each foreign package has its rooms.
ROOMS = {
    "pystemd": {"world/bus.py", "world/notify.py"},
    "docker": {"world/dockerd.py", "image/world/engine.py"},
    "pyudev": {"world/gpu.py"},
    "structlog": {"world/journal.py"},
    "subprocess": {"world/process.py"},
    "requests": {"world/authorities.py", "world/dockerd.py"},
    "urllib3": {"world/dockerd.py", "world/registry.py", "image/world/fetch.py"},
    "cryptography": {"image/world/signing.py", "world/keys.py"},
    "lightkube": {"kubernetes/world/cluster.py"},
    "httpx2": {"kubernetes/world/cluster.py"},
}
# Programs of their own beside the daemon, with rings of their own.
COMPANIONS = ("image", "kubernetes")
# World rooms stand alone, but for those that start programs, handle files or say whom to believe, and
# the parts of one thing.
WORLD_SHARED = {"authorities", "process", "files", "tar"}
WORLD_PARTS = {
    "modules": {"holders", "kernel_log"},
    "mounts": {"kernel_log"},
    "images": {"credentials", "dockerd", "gateway", "registry", "repository", "seen"},
    "gateway": {"pace", "registry", "repository"},
    "trees": {"inspection", "laying"},
    "registry": {"lines"},
    "repository": {"registry"},
    "seen": {"repository"},
    "vouchers": {"downloads", "keys", "layouts", "places", "registry"},
    "layouts": {"places", "registry"},
    "places": {"credentials", "downloads", "registry", "repository"},
    "downloads": {"pace", "registry"},
    "unpacking": {"downloads"},
    "direct": {"dockerd", "downloads", "pace", "places", "seen", "unpacking"},
    "engine": {"dockerd"},
    "workspace": {"compiled"},
}


def row(names: Sequence[str]) -> int:
    """The row of a module by the folders below the package; the wiring is below all rings.

    A program beside the daemon has rings of its own, which may use those of the daemon.
    """
    ring = next((name for name in names if name not in COMPANIONS), "")
    return RINGS.index(ring) if ring in RINGS else len(RINGS)


def ring(path: Path) -> int:
    return row(path.relative_to(PACKAGE).parts)


def imports(path: Path) -> set[str]:
    """The dotted names of everything imported anywhere in a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_from_lower_rows_to_upper_rows(path: Path) -> None:
    for imported in imports(path):
        parts = imported.split(".")
        if parts[0] == "nvidiad" and len(parts) > 1:
            # The package itself holds nothing but its version.
            allowed = row(parts[1:]) <= ring(path) or imported == "nvidiad.__version__"
            assert allowed, f"{name(path)} imports {imported}"


def test_no_rooms_import_each_other_in_a_circle() -> None:
    """Types, too: two rooms that need each other's nouns are one room, or three."""
    rooms = {
        path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path
        for path in MODULES
    }
    known = {
        room: {
            found
            for imported in imports(path)
            for found in (imported, imported.rpartition(".")[0])
            if found in rooms and found != room
        }
        for room, path in rooms.items()
    }
    assert known["nvidiad.nouns.facts"] >= {"nvidiad.nouns.model", "nvidiad.nouns.upcoming"}
    TopologicalSorter(known).prepare()


@pytest.mark.parametrize("companion", COMPANIONS)
@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nobody_imports_a_program_beside_the_daemon(path: Path, companion: str) -> None:
    if path.relative_to(PACKAGE).parts[0] != companion:
        assert not any(imported.startswith(f"nvidiad.{companion}") for imported in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_inner_rings_touch_nothing(path: Path) -> None:
    forbidden = FORBIDDEN[RINGS[ring(path)]] if ring(path) < len(FORBIDDEN) else set()
    used = {imported.partition(".")[0] for imported in imports(path)}
    assert not used & forbidden


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_foreign_packages_stay_in_their_rooms(path: Path) -> None:
    for imported in imports(path):
        package = imported.partition(".")[0]
        assert name(path) in ROOMS.get(package, {name(path)}), f"{name(path)} imports {imported}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "world"], ids=name)
def test_world_rooms_do_not_know_each_other(path: Path) -> None:
    allowed = WORLD_SHARED | WORLD_PARTS.get(path.stem, set())
    for imported in imports(path):
        parts = imported.split(".")
        for world in (["nvidiad", "world"], *(["nvidiad", companion, "world"] for companion in COMPANIONS)):
            if parts[: len(world)] == world and len(parts) > len(world):
                assert parts[len(world)] in allowed, f"{name(path)} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_rooms_are_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert len(text.splitlines()) <= 400
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring and docstring.splitlines()[0].endswith(".")


def test_only_wiring_imports_wiring() -> None:
    for path in MODULES:
        if "nvidiad.app" in imports(path) or any(i.startswith("nvidiad.app.") for i in imports(path)):
            assert path.name in ("cli.py", "check.py")


def test_the_rule_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f() -> None:\n    from nvidiad.world import process\n")
    assert imports(wrong) == {"nvidiad.world.process"}
