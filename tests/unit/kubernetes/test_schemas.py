# SPDX-License-Identifier: Apache-2.0
"""The files for clusters against the schemas of Kubernetes itself, in which an unknown field is a fault."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nvidiad.kubernetes.thought.answer import NOT_READY
from nvidiad.thought.config import load
from nvidiad.thought.labels import DRIVER, MAJOR, READY
from tests.kubernetes.apiserver import QUALIFIED

Json = dict[str, Any]
CHECKOUT = Path(__file__).parents[3]
CONTRIB = CHECKOUT / "contrib/kubernetes"
PAGE = (CHECKOUT / "docs/kubernetes.md").read_text()
# The newest that the package has. The mutation policy in v1 is in it: nothing here is newer than a schema.
NEWEST = "1.37"
# What is patched into somebody else's object is checked as a part of such an object, at its least.
PATCHES = {"fluo-operator.yaml", "kured.yaml"}
# No objects of Kubernetes: Helm's.
VALUES = {"gpu-operator-values.yaml"}
POD_TEMPLATE: Json = {
    "metadata": {"labels": {"app": "a"}},
    "spec": {"containers": [{"name": "a", "image": "i"}]},
}
WHOLE: Json = {"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": POD_TEMPLATE}}


def merge(base: Json, patch: Json) -> Json:
    """A strategic merge, as far as these patches need it: the one container is the one that is patched."""
    made = copy.deepcopy(base)
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = merge(made[key], value)
        elif key == "containers":
            made[key] = [{**made[key][0], **value[0]}]
        else:
            made[key] = value
    return made


def objects() -> list[tuple[str, Json]]:
    found = []
    for path in sorted(CONTRIB.glob("*.yaml")):
        if path.name not in VALUES:
            made = yaml.safe_load_all(path.read_text())
            found += [(path.name, merge(WHOLE, one) if path.name in PATCHES else one) for one in made]
    # The page's own objects are objects, too.
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
    found += [("docs/kubernetes.md", one) for block in blocks if (one := yaml.safe_load(block)).get("kind")]
    return found


OBJECTS = objects()


@pytest.mark.parametrize(
    ("file", "made"), OBJECTS, ids=[f"{file}: {made['kind']}" for file, made in OBJECTS]
)
def test_every_object_is_one_of_kubernetes(file: str, made: Json) -> None:
    assert kubernetes_validate.validate(made, NEWEST, strict=True) == NEWEST, file


@pytest.mark.parametrize(("version", "api"), [("1.35", "v1beta1"), ("1.33", "v1alpha1")])
def test_the_mutation_is_the_same_text_for_older_clusters(version: str, api: str) -> None:
    # The page's own command, for either version.
    (command,) = re.findall(r"^\$ (sed .*/inject\.yaml) \| kubectl apply", PAGE, re.MULTILINE)
    changed = command.replace("v1beta1", api)
    done = subprocess.run(
        ["sh", "-c", changed], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True
    )
    made = list(yaml.safe_load_all(done.stdout))
    assert [one["apiVersion"] for one in made] == [f"admissionregistration.k8s.io/{api}"] * 2
    for one in made:
        assert kubernetes_validate.validate(one, version, strict=True) == version
    assert api in (CONTRIB / "inject.yaml").read_text()


def test_a_field_that_is_not_there_is_a_fault() -> None:
    made = yaml.safe_load((CONTRIB / "pod.yaml").read_text())
    made["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(made, NEWEST, strict=True)


def test_every_file_is_looked_at() -> None:
    assert {path.name for path in CONTRIB.glob("*.yaml")} == {
        file for file, _ in OBJECTS if "/" not in file
    } | VALUES


# -- what is no object of Kubernetes -----------------------------------------------------------------------

# Of the chart's values.yaml (24.6 to 26.x): the tables that are set here, and the type of each value.
CHART: Json = {
    "driver": {"enabled": bool},
    "hostPaths": {"driverInstallDir": str},
    "toolkit": {"installDir": str},
    "cdi": {"enabled": bool},
    "validator": {"driver": {"env": list}},
    "devicePlugin": {"env": list},
    "migManager": {"env": list},
}


def shape(values: Any) -> Any:
    return {key: shape(one) for key, one in values.items()} if isinstance(values, dict) else type(values)


def test_the_values_for_the_operator_are_those_that_its_chart_has() -> None:
    values = yaml.safe_load((CONTRIB / "gpu-operator-values.yaml").read_text())
    assert shape(values) == CHART
    assert values["driver"]["enabled"] is False
    for table in (values["validator"]["driver"], values["devicePlugin"], values["migManager"]):
        # An environment: the API server refuses all but strings, when the chart is long installed.
        assert [shape(one) for one in table["env"]] == [{"name": str, "value": str}]


def test_the_place_of_the_driver_is_the_same_everywhere() -> None:
    values = yaml.safe_load((CONTRIB / "gpu-operator-values.yaml").read_text())
    assert values["hostPaths"]["driverInstallDir"] == "/opt/nvidia/current"
    assert not values["toolkit"]["installDir"].startswith(("/opt/nvidia/", "/usr"))
    plugin = yaml.safe_load((CONTRIB / "device-plugin.yaml").read_text())["spec"]["template"]["spec"]
    environment = {one["name"]: one["value"] for one in plugin["containers"][0]["env"]}
    (root,) = [one["hostPath"]["path"] for one in plugin["volumes"] if one["name"] == "driver-root"]
    assert environment["NVIDIA_DRIVER_ROOT"] == root == "/opt/nvidia/current"
    (mount,) = [one for one in plugin["containers"][0]["volumeMounts"] if one["name"] == "driver-root"]
    assert environment["LD_LIBRARY_PATH"] == f"{mount['mountPath']}/lib64"
    assert plugin["nodeSelector"] == {READY: "true"}
    assert {"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"} in plugin["tolerations"]


def test_a_hostpath_of_a_tree_is_never_made_by_the_kubelet() -> None:
    seen = 0
    for _, made in OBJECTS:
        text = yaml.safe_dump(made)
        for path, kind in re.findall(r"path: (/opt/\S+/current)\n\s*(?:type: (\S+))?", text):
            seen += 1
            assert kind == "Directory", path
    assert seen >= 3


def test_a_kubelet_registers_with_the_taint_that_the_companion_takes_off() -> None:
    text = (CONTRIB / "kubelet-taint.conf").read_text()
    (taint,) = re.findall(r"--register-with-taints=(\S+?)\"", text)
    assert taint == f"{NOT_READY}=:NoSchedule"
    assert QUALIFIED.fullmatch(NOT_READY)
    assert f"`{NOT_READY}" in PAGE


def test_the_pages_configurations_are_those_of_the_files() -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    settings, faults = load([("page", toml)])
    assert not faults
    assert settings.kubernetes.nfd_file is not None
    lines = (CONTRIB / "containerd-cdi.toml").read_text().splitlines()
    assert "\n".join(line for line in lines if not line.startswith("#")) in PAGE
    for name in (READY, DRIVER, MAJOR):
        assert f"| `{name}` |" in PAGE


def test_containerd_is_told_where_specifications_are() -> None:
    made = tomllib.loads((CONTRIB / "containerd-cdi.toml").read_text())
    assert made == {
        "version": 2,
        "plugins": {
            "io.containerd.grpc.v1.cri": {"enable_cdi": True, "cdi_spec_dirs": ["/etc/cdi", "/var/run/cdi"]}
        },
    }


@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="no systemd-tmpfiles here")
def test_the_link_to_nvidia_smi_is_made_once_and_overwrites_nothing(tmp_path: Path) -> None:
    def create() -> None:
        file = CONTRIB / "nvidia-smi.tmpfiles.conf"
        command = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    link = tmp_path / "opt/bin/nvidia-smi"
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_text(
            "root:x:0:0::/:/bin/sh\n" if name == "passwd" else "root:x:0:\n"
        )
    create()
    assert str(link.readlink()) == "/opt/nvidia/current/bin/nvidia-smi"
    link.unlink()
    link.write_text("somebody's own")
    create()
    assert link.read_text() == "somebody's own"


def test_an_image_says_the_paths_of_the_convention(tmp_path: Path) -> None:
    text = (CONTRIB / "workload.Dockerfile").read_text()
    (command,) = re.findall(r"^RUN (printf .*)$", text, re.MULTILINE)
    place = tmp_path / "nvidia.conf"
    subprocess.run(["sh", "-ec", command.replace("/etc/ld.so.conf.d/nvidia.conf", str(place))], check=True)
    libraries = place.read_text().split()
    assert f"LD_LIBRARY_PATH={':'.join(libraries)}" in text
    (pod,) = yaml.safe_load_all((CONTRIB / "pod.yaml").read_text())
    environment = {one["name"]: one["value"] for one in pod["spec"]["containers"][0]["env"]}
    assert environment["LD_LIBRARY_PATH"].split(":") == libraries
    assert f"ENV PATH={environment['PATH']} " in text
    places = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
    assert [f"{place}/lib64" for place in places] == libraries
