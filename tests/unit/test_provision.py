# SPDX-License-Identifier: Apache-2.0
"""The provisioning examples as texts: filled in whole, and what their own tools say of them."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from nvidiad.world.units import GATE
from tests.beds.common import BedError
from tests.host import butane, cloud
from tools import provision

CHECKOUT = Path(__file__).parents[2]
SOURCES = CHECKOUT / "contrib/provision"
NAME = "nvidiad-1.2.3-x86-64"
SUMS = f"{'a' * 64}  {NAME}.tar.gz\n{'b' * 64}  {NAME}.raw\n{'c' * 64}  nvidiad_1.2.3_amd64.deb\n"
TEXTS = sorted(path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.suffix in (".yaml", ".yml"))
BUTANE = ("nvidiad.yaml", "nvidiad-sysext.yaml")
CLOUD = ("deb.yaml", "bundle.yaml")
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """contrib/provision, filled in for a release."""
    dist = tmp_path_factory.mktemp("dist")
    (dist / "SHA256SUMS").write_text(SUMS)
    target = dist / "provision"
    assert provision.main([str(dist), str(target), "--url=https://files.example/1.2.3/"]) == 0
    return target


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- filling in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_a_template_is_yaml_before_and_after(text: Path, place: Path) -> None:
    assert yaml.safe_load((SOURCES / text).read_text())
    filled = (place / text).read_text()
    assert yaml.safe_load(filled)
    assert not provision._NAME.search(filled)


def test_every_variable_is_explained() -> None:
    told = (SOURCES / "README.md").read_text()
    used = {name for text in TEXTS for name in provision._NAME.findall((SOURCES / text).read_text())}
    assert used
    for name in used:
        assert f"| `@{name}@` |" in told


def test_a_unit_that_is_filled_in_is_the_one_that_is_shipped(place: Path) -> None:
    config = yaml.safe_load((place / "butane/nvidiad.yaml").read_text())
    units = {unit["name"]: unit for unit in config["systemd"]["units"]}
    shipped = (CHECKOUT / "units/systemd/system/nvidia.service").read_text()
    assert units["nvidia.service"]["contents"] == shipped
    # As nvidiad would write it, else it would not know it as its own.
    assert units["kubelet.service"]["dropins"] == [{"name": "10-nvidia.conf", "contents": GATE}]


def test_of_an_extension_a_unit_calls_the_program_below_usr(place: Path) -> None:
    text = (place / "butane/nvidiad-sysext.yaml").read_text()
    assert "ExecStart=/usr/lib/nvidiad/bin/nvidiad activate" in text
    assert "/opt/nvidiad/bin" not in text


@pytest.mark.parametrize(
    ("sums", "why"),
    [
        ("", "names no bundle for 'x86-64'"),
        (f"{'a' * 64}  nvidiad-1.2.3-arm64.tar.gz\n", "names no bundle for 'x86-64'"),
        (f"{'a' * 64}  {NAME}.tar.gz\n", "nothing is known of '@"),
    ],
)
def test_what_is_not_in_the_release_is_a_failure(
    sums: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "SHA256SUMS").write_text(sums)
    assert provision.main([str(tmp_path), str(tmp_path / "out"), "--url=https://files.example"]) == 1
    assert why in capsys.readouterr().err


# -- Butane and Ignition ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ignition() -> Path:
    try:
        return butane.validator()
    except (BedError, OSError) as error:
        pytest.skip(f"Debian's ignition cannot be had: {error}")


@pytest.mark.parametrize("name", BUTANE)
def test_ignition_takes_it(name: str, place: Path, ignition: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.ign"
    config.write_text(butane.translated((place / "butane" / name).read_text()))
    assert run(ignition, config) == ""


def test_the_validator_sees_a_fault(ignition: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.ign"
    config.write_text(json.dumps({"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": "x"}]}}))
    assert subprocess.run([ignition, config], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("variant: fcos\nversion: 1.5.0\n", "no such variant"),
        (
            "variant: flatcar\nversion: 1.0.0\nsystemd: {units: [{name: a, enable: true}]}\n",
            "'enable' is no key",
        ),
        ("variant: flatcar\nversion: 1.0.0\nstorage: {files: [{path: a}]}\n", "absolute"),
        (
            "variant: flatcar\nversion: 1.0.0\nstorage: {files: [{path: /a, contents: {source: 'http://b'}}]}\n",
            "without a hash",
        ),
    ],
)
def test_the_stand_in_for_butane_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        butane.translated(text)


# -- cloud-init -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud_init() -> list[str | Path]:
    """The command that compares a file with cloud-init's schema."""
    try:
        library = cloud.files() / cloud.LIBRARY
    except (BedError, OSError) as error:
        pytest.skip(f"Debian's cloud-init cannot be had: {error}")
    program = ["/usr/bin/python3", "-m", "cloudinit.cmd.main", "schema", "--config-file"]
    return ["env", f"PYTHONPATH={library}", *program]


@pytest.mark.parametrize("name", CLOUD)
def test_cloud_init_takes_it(name: str, place: Path, cloud_init: list[str | Path]) -> None:
    assert "Valid" in run(*cloud_init, place / "cloud-init" / name)


def test_cloud_init_sees_a_fault(cloud_init: list[str | Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("#cloud-config\nruncmd: {a: 1}\n")
    done = subprocess.run([*cloud_init, bad], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "runcmd" in done.stdout + done.stderr


# -- Ansible, shell ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not (TOOLS / "ansible-lint").exists(), reason="ansible-lint is not installed")
def test_ansible_lint_finds_nothing(place: Path, tmp_path: Path) -> None:
    path = f"{TOOLS}:{os.environ['PATH']}"
    run(
        TOOLS / "ansible-lint",
        *("--offline", "--strict", "--profile=production", "site.yml"),
        cwd=place / "ansible",
        HOME=str(tmp_path),
        PATH=path,
        NO_COLOR="1",
    )


@pytest.mark.parametrize(
    ("link", "unfinished", "installs"),
    [(None, False, True), ("1.2.2", False, True), ("1.2.3", False, False), ("1.2.3", True, True)],
)
def test_the_role_installs_what_is_not_there_or_not_finished(
    link: str | None, *, unfinished: bool, installs: bool
) -> None:
    jinja2 = pytest.importorskip("jinja2")
    tasks = yaml.safe_load((SOURCES / "ansible/roles/nvidiad/tasks/main.yml").read_text())
    (task,) = (task for task in tasks if task["name"] == "Install the bundle")
    registered = {task["register"] for task in tasks if "ansible.builtin.stat" in task}
    said: dict[str, dict[str, object]] = {
        "nvidiad_current": {"lnk_target": link} if link else {},
        "nvidiad_unfinished": {"exists": unfinished},
    }
    environment = jinja2.Environment()
    environment.filters["basename"] = os.path.basename
    values = {name: {"stat": said[name]} for name in registered}
    assert environment.compile_expression(task["when"])(nvidiad_version="1.2.3", **values) is installs


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    run("shellcheck", SOURCES / "install.sh")


HASH = "0" * 64


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "usage"),
        (("https://files.example/a.tar.gz",), "usage"),
        (("https://files.example/a.tar.gz", "abc"), "not the SHA-256"),
        (("https://files.example/a.tar.gz", HASH.upper().replace("0", "A")), "lower case"),
        (("https://files.example/a.zip", HASH), "not the name of a bundle"),
    ],
)
def test_the_installation_refuses(arguments: tuple[str, ...], why: str) -> None:
    done = subprocess.run([SOURCES / "install.sh", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert why in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install")
def test_a_bundle_of_another_hash_is_not_even_unpacked(tmp_path: Path) -> None:
    made = tmp_path / f"{NAME}.tar.gz"
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "install").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / NAME / "install").chmod(0o755)
    run("tar", "-czf", made, "-C", tmp_path, NAME)
    left = set(Path("/var/tmp").glob("nvidiad-install.*"))
    command = [str(SOURCES / "install.sh"), f"file://{made}"]
    done = subprocess.run([*command, HASH], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was installed" in done.stderr
    assert not (tmp_path / "ran").exists()
    digest = run("sha256sum", made).split()[0]
    run(*command, digest)
    assert (tmp_path / "ran").exists()
    assert set(Path("/var/tmp").glob("nvidiad-install.*")) == left


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle that does no more than to say that it was run."""
    made = tmp_path / "files" / f"{NAME}.tar.gz"
    (tmp_path / NAME).mkdir()
    made.parent.mkdir()
    (tmp_path / NAME / "install").write_text(f"#!/bin/sh\necho $* >{tmp_path}/ran\n")
    (tmp_path / NAME / "install").chmod(0o755)
    run("tar", "-czf", made, "-C", tmp_path, NAME)
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install")
def test_it_installs_where_nothing_can_be_run_from_var_tmp(small: Path, tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o noexec tmpfs /var/tmp && exec "$@"'
    isolated = ["unshare", "--mount", "--propagation=private", "sh", "-c", mounted, "sh"]
    digest = run("sha256sum", small).split()[0]
    run(*isolated, SOURCES / "install.sh", f"file://{small}", digest, "--enable")
    assert (tmp_path / "ran").read_text() == "--enable\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install")
@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_it_fetches_with_a_busybox_alone(small: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in run("busybox", "--list").split():
        (programs / name).symlink_to("/bin/busybox")
    digest = run("sha256sum", small).split()[0]
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(small.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{small.name}"
        try:
            run("/bin/sh", SOURCES / "install.sh", url, digest, PATH=str(programs), no_proxy="*")
        finally:
            server.shutdown()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", CLOUD)
def test_cloud_init_runs_nothing_in_var_tmp_by_its_mode(name: str, place: Path) -> None:
    commands = yaml.safe_load((place / "cloud-init" / name).read_text())["runcmd"]
    assert not [command for command in commands if command[0].startswith("/var/tmp")]
