# SPDX-License-Identifier: Apache-2.0
"""The files for clusters: they say what the code says; kured's command answers as kured understands it."""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvidiad.kubernetes import cli
from nvidiad.kubernetes.thought import answer
from nvidiad.rim.client import SOCKET
from tests.kubernetes.apiserver import COMPANION, ROLES

CHECKOUT = Path(__file__).parents[3]
CONTRIB = CHECKOUT / "contrib/kubernetes"
PAGE = (CHECKOUT / "docs/kubernetes.md").read_text()
Json = dict[str, Any]


def objects(name: str) -> dict[str, Json]:
    return {made["kind"]: made for made in yaml.safe_load_all((CONTRIB / name).read_text())}


def container(workload: Json) -> Json:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)


# -- the companion -----------------------------------------------------------------------------------------


def test_the_companion_may_do_what_it_does_and_no_more() -> None:
    made = objects("companion.yaml")
    (rule,) = made["ClusterRole"]["rules"]
    assert rule["apiGroups"] == [""]
    assert rule["resources"] == ["nodes"]
    # The stand-in of the API server, which refuses all else, has the same.
    assert set(rule["verbs"]) == ROLES[COMPANION]


def test_role_account_and_pods_belong_together() -> None:
    made = objects("companion.yaml")
    account, binding = made["ServiceAccount"]["metadata"], made["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == made["ClusterRole"]["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
    assert made["DaemonSet"]["metadata"]["namespace"] == account["namespace"]
    template = made["DaemonSet"]["spec"]["template"]
    assert template["spec"]["serviceAccountName"] == account["name"]
    assert made["DaemonSet"]["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]


def test_a_pod_gets_the_directory_of_the_socket_and_the_name_of_its_node() -> None:
    daemon_set = objects("companion.yaml")["DaemonSet"]
    pod, companion = daemon_set["spec"]["template"]["spec"], container(daemon_set)
    (volume,), (mount,) = pod["volumes"], companion["volumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["hostPath"] == {"path": str(Path(SOCKET).parent), "type": "Directory"}
    assert mount["mountPath"] == str(Path(SOCKET).parent)
    (variable,) = companion["env"]
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    options = cli.parser({variable["name"]: "gpu-1"}).parse_args([])
    assert (options.node, options.socket, options.without_nvidiad) == ("gpu-1", SOCKET, False)


def test_a_pod_has_no_rights_on_the_host() -> None:
    daemon_set = objects("companion.yaml")["DaemonSet"]
    pod = daemon_set["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not {"hostPID", "hostNetwork", "hostIPC"} & pod.keys()
    assert container(daemon_set)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["tolerations"] == [{"operator": "Exists"}]


def test_the_operator_waits_for_what_the_companion_sets() -> None:
    operator = container(objects("fluo-operator.yaml")["Deployment"])
    assert operator["args"] == [
        f"--before-reboot-annotations={answer.DRIVER_STAGED}",
        f"--after-reboot-annotations={answer.DRIVER_READY}",
    ]
    assert "command" not in operator


# -- kured -------------------------------------------------------------------------------------------------


def sentinel() -> str:
    daemon_set = objects("kured.yaml")["DaemonSet"]
    assert daemon_set["spec"]["template"]["spec"]["hostPID"]
    kured = container(daemon_set)
    assert kured["securityContext"] == {"privileged": True}
    (told,) = [one for one in kured["command"] if one.startswith("--reboot-sentinel-command=")]
    return str(told.partition("=")[2])


@pytest.mark.parametrize("required", [True, False], ids=["required", "not required"])
@pytest.mark.parametrize("check", [0, 75, 3], ids=["go", "wait", "not running"])
def test_kured_reboots_where_it_is_required_and_may_go(tmp_path: Path, required: bool, check: int) -> None:  # noqa: FBT001 - a column of the table
    program = tmp_path / "nvidiad"
    program.write_text(f'#!/bin/sh\n[ "$*" = reboot-check ] && exit {check}\nexit 99\n')
    program.chmod(0o755)
    flag = tmp_path / "reboot-required"
    if required:
        flag.touch()
    text = (
        sentinel()
        # The package and the extension have it in /usr/bin, the bundle in /opt.
        .replace("PATH=/opt/nvidiad/bin:/usr/bin:/bin", f"PATH={tmp_path}:/usr/bin:/bin")
        .replace("/run/reboot-required", str(flag))
    )
    assert text.count(str(tmp_path)) == 2
    # kured splits it as a shell would, and runs it without one.
    done = subprocess.run(shlex.split(text), check=False)
    assert done.returncode == (0 if required and check == 0 else 1)


def test_the_page_shows_what_is_shipped() -> None:
    assert f"--reboot-sentinel-command={sentinel()}" in PAGE
    for argument in container(objects("fluo-operator.yaml")["Deployment"])["args"]:
        assert argument in PAGE
    for path in CONTRIB.iterdir():
        assert f"](../contrib/kubernetes/{path.name})" in PAGE


# -- the program -------------------------------------------------------------------------------------------


def test_the_page_tells_every_annotation_and_option() -> None:
    for name in (answer.DRIVER_STAGED, answer.DRIVER_READY, answer.REASON):
        assert f"`{name}`" in PAGE
    for action in cli.parser({})._actions:
        if not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            assert any(f"`{option}" in PAGE for option in action.option_strings), action.option_strings


def test_a_node_is_named_as_its_kubelet_names_it() -> None:
    assert re.fullmatch(r"[^A-Z]+", cli.parser({}).parse_args([]).node)


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False
    )


def test_its_image_needs_nothing_that_must_be_compiled() -> None:
    blocked = ["pystemd", "docker", "pyudev", "structlog", "urllib3", "cryptography"]
    done = run(
        f"import sys; sys.modules |= dict.fromkeys({blocked})\n"
        "from nvidiad.kubernetes import app, cli\n"
        "cli.main(['--kubeconfig=/none'])"
    )
    assert "'/none' does not say how the API server is reached" in done.stderr, done.stderr


def test_its_image_has_what_the_extra_has() -> None:
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    dockerfile = (CHECKOUT / "docker/kubernetes/Dockerfile").read_text()
    wanted = setup["options.extras_require"]["kubernetes"].split()
    assert re.findall(r'"([a-z0-9]+[<>=].*?)"', dockerfile.split("FROM")[1]) == wanted
    assert set(wanted) <= set(setup["options.extras_require"]["test"].split())


def test_what_is_not_installed_is_named() -> None:
    done = run(
        "import sys; sys.modules['lightkube'] = None\n"
        "from nvidiad.kubernetes import cli\n"
        "sys.exit(cli.main([]))"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "nvidiad-kubernetes: lightkube is not installed",
        "Install it with: pip install 'nvidiad[kubernetes]'",
    ]
