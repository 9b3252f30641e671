# SPDX-License-Identifier: Apache-2.0
"""The Debian package as a file: what is in it, that it can be made again, and lintian's word."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from nvidiad import __version__

CHECKOUT = Path(__file__).parents[2]
MAKER = CHECKOUT / "tools/deb.sh"
GATE = "10-nvidia.conf"

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def make(place: Path, **settings: str) -> Path:
    """The package of a small tree."""
    tree = place / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "share/nvidiad/units").mkdir(parents=True)
    for name in ("bin/nvidiad", "install", "share/nvidiad/units/x.service"):
        (tree / name).write_text("#!/bin/sh\nexit 0\n")
        (tree / name).chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "1700000000", **settings}
    # As the Makefile calls it: by names below where it is.
    command = [str(MAKER), "tree", "dist"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=place)
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("package"))


def contents(package: Path) -> dict[str, tarfile.TarInfo]:
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    return {member.name.removeprefix("."): member for member in tarfile.open(fileobj=BytesIO(archive))}


def control(package: Path, name: str) -> str:
    return output("dpkg-deb", "--info", package, name)


def test_it_is_named_as_debian_names_packages(package: Path) -> None:
    architecture = output("dpkg", "--print-architecture").strip()
    assert package.name == f"nvidiad_{__version__}_{architecture}.deb"


def test_it_has_every_file_of_units_but_the_gates(package: Path) -> None:
    units = CHECKOUT / "units"
    sources = {path.relative_to(units).as_posix() for path in units.rglob("*") if path.is_file()}
    places = {
        f"/etc/{source}" if source.startswith("nvidiad/") else f"/usr/lib/{source}"
        for source in sources
        if not source.endswith(GATE)
    }
    found = contents(package)
    assert places <= set(found)
    assert not [path for path in found if path.endswith(GATE)]
    assert not [path for path in found if path.startswith("/lib/")]


def test_its_units_call_its_own_program(package: Path) -> None:
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as opened:
        unit = opened.extractfile("./usr/lib/systemd/system/nvidiad.service")
        assert unit is not None
        text = unit.read().decode()
    assert "ExecStart=/usr/lib/nvidiad/bin/nvidiad run" in text
    assert "/opt/nvidiad" not in text
    assert contents(package)["/usr/bin/nvidiad"].linkname == "../lib/nvidiad/bin/nvidiad"


def test_what_only_a_bundle_needs_is_not_in_it(package: Path) -> None:
    found = contents(package)
    assert "/usr/lib/nvidiad/bin/nvidiad" in found
    assert not {"/usr/lib/nvidiad/install", "/usr/lib/nvidiad/share/nvidiad/units"} & set(found)


def test_every_file_is_of_root_and_nobody_else_writes_it(package: Path) -> None:
    for path, member in contents(package).items():
        assert (member.uid, member.gid) == (0, 0), path
        assert member.issym() or not member.mode & 0o022, path


def test_the_configuration_and_nothing_else_is_kept_on_an_upgrade(package: Path) -> None:
    assert control(package, "conffiles").split() == ["/etc/nvidiad/nvidiad.toml"]


def test_the_scripts_enable_whatever_can_be_enabled(package: Path) -> None:
    units = (CHECKOUT / "units/systemd/system").glob("*.*")
    installable = sorted(unit.name for unit in units if unit.is_file() and "[Install]" in unit.read_text())
    for script in ("postinst", "postrm"):
        assert " ".join(installable) in control(package, script)


def test_no_script_stops_or_restarts_more_than_the_daemon(package: Path) -> None:
    said = [
        line for script in ("postinst", "prerm", "postrm") for line in control(package, script).splitlines()
    ]
    acting = [line for line in said if "deb-systemd-invoke" in line]
    assert acting
    for line in acting:
        assert set(line.split()) & {"nvidiad.service"}
        assert not [word for word in line.split() if word.endswith(".service") and word != "nvidiad.service"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["preinst", "postinst", "prerm", "postrm"])
def test_shellcheck(package: Path, tmp_path: Path, script: str) -> None:
    (tmp_path / script).write_text(control(package, script))
    done = subprocess.run(["shellcheck", tmp_path / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_equal_inputs_make_equal_packages(package: Path, tmp_path: Path) -> None:
    assert make(tmp_path).read_bytes() == package.read_bytes()


@pytest.mark.parametrize(
    ("own", "debian"),
    [("1.2.0", "1.2.0"), ("1.2.0rc1", "1.2.0~rc1"), ("1.2.0.dev3", "1.2.0~dev3"), ("1.2.0a1", "1.2.0~a1")],
)
def test_what_comes_before_a_release_sorts_before_it(own: str, debian: str) -> None:
    expression = next(line for line in MAKER.read_text().splitlines() if line.startswith("version="))
    script = f"own={own}; DEB_VERSION=; {expression}; echo $version"
    assert output("sh", "-c", script).strip() == debian


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_finds_nothing(package: Path) -> None:
    command = [
        "lintian",
        "--fail-on=error,warning,info",
        "--allow-root",
        "--tag-display-limit=0",
        str(package),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
