# SPDX-License-Identifier: Apache-2.0
"""The companion's image: made by a real engine without a network, and run as the DaemonSet runs it."""

from __future__ import annotations

import configparser
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import __version__
from tests.beds.common import CHECKOUT, cached, chroot_with_pip, host_root
from tests.kubernetes.stage import KUBECONFIG

if TYPE_CHECKING:
    from tests.host.bed import Host

CONTEXT = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "nvidiad", "docker")
_SETUP = configparser.ConfigParser()
_SETUP.read(CHECKOUT / "setup.cfg")
WANTED = (*_SETUP["options.extras_require"]["kubernetes"].split(), "setuptools>=68", "wheel")
# What a base image with Python has, of the host's own.
PYTHON = (
    "bin lib lib64 usr/lib64 usr/lib/*-linux-gnu usr/lib/python3* usr/share/python-wheels usr/bin/python3*"
)
SHELL = "usr/bin/sh usr/bin/dash usr/bin/env etc/passwd"
IMAGE = "nvidiad-kubernetes:test"
# As contrib/kubernetes/companion.yaml has it.
CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")


def wheels(suite: str) -> Path:
    """What is installed into the image, for the host's Python."""

    def build(partial: Path) -> None:
        partial.mkdir()
        download = shlex.join(["/tmp/v/bin/pip", "download", "--quiet", "--dest=/wheels", *WANTED])
        script = f"python3 -m venv /tmp/v && {download}"
        chroot_with_pip(host_root(suite), {partial: Path("/wheels")}, script)

    return cached(f"wheels-{suite}", [host_root(suite).name, WANTED], build)


def build(host: Host, suite: str) -> None:
    for name in CONTEXT:
        host.put(CHECKOUT / name, f"/var/tmp/context/{name}")
    host.put(wheels(suite), "/var/tmp/context/wheels")
    host.run(f"cd / && tar -c {PYTHON} {SHELL} | docker import - python:host", timeout=300, check=True)
    arguments = ["--build-arg=BASE=python:host", "--build-arg=PIP_OPTIONS=--no-index --find-links=wheels"]
    command = ["docker", "build", "-q", "--network=none", *arguments, "-t", IMAGE]
    where = ["-f", "/var/tmp/context/docker/kubernetes/Dockerfile", "/var/tmp/context"]
    host.run(*command, *where, timeout=600, env={"DOCKER_BUILDKIT": "0"}, check=True)


def test_the_companion_runs_in_its_image_and_ends_at_once_as_process_one(host: Host, suite: str) -> None:
    build(host, suite)
    said = host.run("docker", "run", "--rm", *CONFINED, IMAGE, "--version", check=True)
    assert said.out.strip() == f"nvidiad-kubernetes {__version__}"
    user = host.run("docker", "inspect", "--format={{.Config.User}}", IMAGE, check=True)
    assert user.out.strip() == "65534:65534"

    # Without an account of a cluster it says so, and has all it needs to say it.
    alone = host.run("docker", "run", "--rm", *CONFINED, IMAGE)
    assert alone.rc == 1
    assert "does not say how the API server is reached" in alone.out + alone.err

    host.write("/var/tmp/kubeconfig", KUBECONFIG.format(url="http://127.0.0.1:1"))
    place = "--volume=/var/tmp/kubeconfig:/kubeconfig:ro"
    started = ["docker", "run", "--detach", "--name=companion", *CONFINED, place, IMAGE]
    host.run(*started, "--kubeconfig=/kubeconfig", "--node=gpu-1", check=True)
    host.wait(lambda: "does not answer" in host.run("docker logs companion 2>&1").out, "it tries")
    begun = time.monotonic()
    host.run("docker", "stop", "--time=60", "companion", timeout=90, check=True)
    assert time.monotonic() - begun < 50
    status = host.run("docker", "inspect", "--format={{.State.ExitCode}}", "companion", check=True)
    assert status.out.strip() == "0"
