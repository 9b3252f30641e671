# SPDX-License-Identifier: Apache-2.0
"""`nvidiad check` of a host that is a directory: the rows, what is skipped and why, and the exit status."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nvidiad import beside, check, cli
from tests.payload import builder
from tests.unit import facts as f
from tests.unit.trees import fake_program, make_tree

CONFIGURATION = f'[driver]\nversion = "{f.DRIVER}"\n[image]\nrepository = "registry.example/nvidia-driver"\n'
DATA = Path(__file__).parents[1] / "data"
GPU = "sys/bus/pci/devices/0000:01:00.0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a tree on disk, and nothing of it in force."""
    builder.payload(tmp_path / "host", driver=f.DRIVER, release=("flatcar", f.OS), kernel=f.KERNEL)
    return make_tree(
        tmp_path / "host",
        {
            "etc/nvidiad.toml": CONFIGURATION,
            "etc/os-release": f"ID=flatcar\nVERSION_ID={f.OS}\n",
            "proc/sys/kernel/osrelease": f"{f.KERNEL}\n",
            "proc/self/mountinfo": "",
            f"{GPU}/vendor": "0x10de\n",
            f"{GPU}/device": "0x20b5\n",
            f"{GPU}/class": "0x030200\n",
            "usr/lib64": None,
        },
    )


def ask(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and the rows by name."""
    config = f"--config={root}/etc/nvidiad.toml"
    status = cli.main(["check", f"--root={root}", config, "--json=short", *more])
    said = capsys.readouterr()
    assert said.err == ""
    return status, {row["check"]: row for row in json.loads(said.out)}


def wrong(rows: dict[str, Any]) -> dict[str, str]:
    return {name: row["code"] for name, row in rows.items() if row["state"] in ("failed", "warning")}


def test_a_host_that_only_has_to_be_brought_up(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = ask(root, capsys)
    assert (status, wrong(rows)) == (1, {"driver": "not-in-force"})
    assert rows["daemon"]["state"] == "skipped"
    assert rows["symbols"]["text"] == f"the OS has no modules of kernel '{f.KERNEL}' on disk"
    assert cli.main(["check", f"--root={root}", f"--config={root}/etc/nvidiad.toml"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "21 checks: 12 in order, 1 failed, 8 skipped"
    assert told[-2].strip() == "→ systemctl start nvidia.service; journalctl -u nvidia."


SPOILED: dict[str, tuple[dict[str, str | bytes | None], dict[str, str]]] = {
    "another GPU": ({f"{GPU}/device": "0x1db6\n"}, {"served": "flavour-wrong", "driver": "flavour-wrong"}),
    "nouveau has it": (
        {f"{GPU}/driver": "-> ../../../../bus/pci/drivers/nouveau"},
        {"rivals": "module-foreign", "driver": "module-foreign"},
    ),
    "a guest has it": ({f"{GPU}/driver": "-> ../x/vfio-pci"}, {"driver": "other-owner"}),
    "locked down": (
        {"sys/kernel/security/lockdown": "none [integrity]\n"},
        {"signature": "lockdown", "driver": "lockdown"},
    ),
    "module.sig_enforce": (
        {"sys/module/module/parameters/sig_enforce": "Y\n"},
        {"signature": "lockdown", "driver": "lockdown"},
    ),
    "a library was changed": (
        {f"opt/nvidia/{f.DRIVER}/{f.OS}/lib64/libcuda.so.{f.DRIVER}": b"\x7fELF"},
        {"tree": "tree-invalid", "driver": "not-in-force"},
    ),
    "another kernel runs": ({"proc/sys/kernel/osrelease": "6.6.0\n"}, {"driver": "vermagic-mismatch"}),
    "no such driver": (
        {"etc/nvidiad.toml": CONFIGURATION.replace(f.DRIVER, "570.1")},
        {"driver": "tree-missing"},
    ),
    "a key that is none": (
        {
            "etc/nvidiad.toml": f"{CONFIGURATION}[trust]\nkeys = ['/etc/nvidiad/keys/a.pem']\n",
            "etc/nvidiad/keys/a.pem": "-----BEGIN PRIVATE KEY-----\n",
        },
        {"trust": "key-unusable", "driver": "not-in-force"},
    ),
    "nothing configured": ({"etc/nvidiad.toml": ""}, {"configuration": "not-configured"}),
    "a fault in the configuration": (
        {"etc/nvidiad.toml": "[driver]\nversio = 1\n"},
        {"configuration": "config-invalid"},
    ),
    "switches that only a subnet manager reaches": (
        {"sys/class/infiniband/mlx5_0/device/vpd": b"ConnectX-7 SW_MNG"},
        {"fabric-manager": "fabric-unsupported", "driver": "not-in-force"},
    ),
    "modprobe must not load what it needs not": (
        {"etc/modprobe.d/x.conf": "install drm /bin/false\n"},
        {"driver": "not-in-force"},
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_each_fault_has_its_row(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, codes = SPOILED[name]
    make_tree(root, content)
    status, rows = ask(root, capsys)
    assert wrong(rows) == codes
    # A host that gives its GPUs away is in order.
    assert status == (0 if name == "a guest has it" else 1)
    assert all(row["remedy"] for row in rows.values() if row["state"] in ("failed", "warning"))


def test_whose_signatures_are_wanted_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = (DATA / "cosign/key.pem").read_text()
    text = f"{CONFIGURATION}[trust]\nkeys = ['/etc/nvidiad/keys/a.pem']\n"
    make_tree(root, {"etc/nvidiad.toml": text, "etc/nvidiad/keys/a.pem": key})
    _, rows = ask(root, capsys)
    assert rows["trust"]["state"] == "ok"
    assert rows["trust"]["text"].startswith("images must be signed by a.pem (SHA-256 ")
    make_tree(root, {"etc/nvidiad.toml": f"{text}policy = 'prefer'\n"})
    assert ask(root, capsys)[1]["trust"]["text"].startswith("images need not be signed by a.pem ")
    pin = '[trust.pins]\n"registry.example/drivr:1" = "sha256:' + "1" * 64 + '"\n'
    make_tree(root, {"etc/nvidiad.toml": f"{text}{pin}"})
    assert (rows := ask(root, capsys)[1])["trust"]["state"] == "warning"
    assert "'registry.example/drivr:1' is for no image" in rows["trust"]["text"]
    make_tree(root, {"etc/nvidiad.toml": f"{text}{pin.replace('drivr', 'nvidia-driver')}"})
    assert ask(root, capsys)[1]["trust"]["state"] == "ok"


def test_what_keeps_the_driver_back_is_told_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(root, {"sys/kernel/security/lockdown": "none [integrity]\n"})
    _, rows = ask(root, capsys)
    assert "is not signed" in rows["signature"]["text"]
    assert rows["driver"]["text"] == "it cannot come up as long as 'signature' is not in order"
    assert rows["driver"]["code"] == "lockdown"


def test_no_gpu_is_in_order(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / GPU / "class").write_text("0x020000\n")
    status, rows = ask(root, capsys)
    assert (status, wrong(rows), rows["gpu"]["code"]) == (0, {}, "no-gpu")


def test_what_this_user_may_not_see_is_skipped(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/opt/nvidia")

    monkeypatch.setattr(check, "look_at_driver", closed)
    status, rows = ask(root, capsys)
    assert status == 0
    assert rows["host"]["text"] == "this user cannot look at '/opt/nvidia'"


def test_a_fabric_manager_of_another_version_is_found_by_asking_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = fake_program(tmp_path / "bin", "nv-fabricmanager", "echo 'Fabric Manager version is : 550.1'")
    assert beside.told_version(str(program)) == "550.1"
    silent = fake_program(tmp_path / "other", "nv-fabricmanager", "exit 1")
    assert beside.told_version(str(silent)) == ""
    assert beside.told_version(str(tmp_path / "absent")) == ""
    assert capsys.readouterr().out == ""
