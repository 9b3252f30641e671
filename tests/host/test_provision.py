# SPDX-License-Identifier: Apache-2.0
"""The provisioning examples, carried out: from a host without nvidiad to `ready` by each of the ways."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad import __version__
from tests.beds.common import CHECKOUT, BedError
from tests.host import bundles, butane, cloud, road
from tests.host.bundles import NEXT
from tests.host.layout import ENVIRONMENT
from tests.host.machine import RELEASE
from tests.payload import image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

WITHIN = "http://127.0.0.1:8000"
UNTOUCHED = ("kubelet.service", "nvidia.service", "nvidia-persistenced.service")
TOOLS = Path(sys.executable).parent
# The rest is as the examples have it.
IMPATIENT = '[daemon]\nretry-initial = 1\nretry-maximum = 2\n[image]\ntag = "{os}-{driver}"\n'


@contextmanager
def served(place: Path) -> Iterator[str]:
    """The files of a release on this machine; their URL."""
    handler = functools.partial(_Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def serve_within(host: Host, place: Path) -> None:
    """The files of a release inside a host, whose network ends there."""
    host.put(place, "/var/tmp/dist")
    host.run(
        "systemd-run --unit=files -- /usr/bin/python3 -m http.server -d /var/tmp/dist -b 127.0.0.1 8000",
        check=True,
    )
    host.run("until (: </dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep .05; done", timeout=20, check=True)


def in_order(host: Host) -> bool:
    """Whether the kubelet is not older than the driver."""
    times = [
        int(host.show(unit, "ActiveEnterTimestampMonotonic"))
        for unit in ("nvidia.service", "kubelet.service")
    ]
    return 0 < times[0] <= times[1]


def invocations(host: Host, *units: str) -> dict[str, str]:
    return {unit: host.show(unit, "InvocationID") for unit in units}


# -- Flatcar ------------------------------------------------------------------------------------------------

# Flatcar's presets enable nothing; its own nvidia.service lies in /usr (a stand-in that tells of its start).
FLATCAR = """
mkdir -p etc/systemd/system etc/systemd/system-preset etc/selinux/none/contexts/files
echo 'disable *' >etc/systemd/system-preset/30-flatcar.preset
echo uninitialized >etc/machine-id
ln -sf /dev/null etc/systemd/system/systemd-firstboot.service
mkdir -p usr/lib/systemd/system/multi-user.target.wants
cat >usr/lib/systemd/system/nvidia.service <<'U'
[Unit]
Before=kubelet.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/touch /run/flatcar-compiles
U
ln -s ../nvidia.service usr/lib/systemd/system/multi-user.target.wants/nvidia.service
echo SELINUXTYPE=none >etc/selinux/config
: >etc/selinux/none/contexts/files/file_contexts
mkdir -p etc/nvidiad/conf.d
"""


def ignited(config: Path, place: Path) -> list[str]:
    """What does in the directory of a host's root what Flatcar's initrd does before the first boot."""
    (place / "bin").mkdir()
    # Ignition labels what it wrote; there is no policy to do that by.
    (place / "bin/setfiles").write_text("#!/bin/sh\ncat >/dev/null\n")
    (place / "bin/setfiles").chmod(0o755)
    cache = f"--config-cache={place}/cache.json --state-file={place}/state --neednet={place}/neednet"
    lines = [FLATCAR, f"printf '%s' {shlex.quote(IMPATIENT)} >etc/nvidiad/conf.d/60-bed.toml"]
    lines.append(f"export PATH={place}/bin:$PATH IGNITION_CONFIG_FILE={config}")
    ignition = f"{butane.ignition_program()} --platform=file {cache} --root=$PWD --log-to-stdout"
    lines += [f"{ignition} --stage={stage}" for stage in ("fetch-offline", "fetch", "files")]
    lines.append("rm -r etc/selinux")
    return ["sh", "-euc", "\n".join(lines)]


def test_flatcar_with_butane_comes_up_with_its_driver_before_the_kubelet(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    bundles.bundle(dist, __version__)
    bundles.sums(dist)
    with served(dist) as url:
        texts = bundles.rendered(dist, url, road.REPOSITORY, debian=False)
        config = tmp_path / "config.ign"
        config.write_text(butane.translated((texts / "butane/nvidiad.yaml").read_text()))
        with road.booted(
            venv=False, packages=True, provision=ignited(config, tmp_path), states=("running", "degraded")
        ) as host:
            assert host.state("kubelet.service") != "active"
            road.publish(host)
            road.wait_ready(host)
            assert in_order(host)
            assert not host.exists("/run/flatcar-compiles")
            assert not host.exists("/var/cache/nvidiad")
            installed = invocations(host, "nvidiad-install.service")
            assert all(installed.values())
            enabled = host.run("systemctl is-enabled nvidiad.service nvidia.service", check=True).out
            assert enabled.split() == ["enabled", "enabled"]

            assert host.reboot() == "running"
            road.wait_ready(host)
            assert in_order(host)
            assert host.state("nvidiad-install.service") == "inactive"
            assert host.show("nvidiad-install.service", "ConditionResult") == "no"
            assert not host.exists("/run/flatcar-compiles")


def test_of_a_file_with_another_hash_ignition_makes_no_host(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / f"nvidiad-{__version__}-x86-64.tar.gz").write_bytes(b"a bundle")
    bundles.sums(dist)
    with served(dist) as url:
        texts = bundles.rendered(dist, url, road.REPOSITORY, debian=False)
        (dist / f"nvidiad-{__version__}-x86-64.tar.gz").write_bytes(b"another")
        config = tmp_path / "config.ign"
        config.write_text(butane.translated((texts / "butane/nvidiad.yaml").read_text()))
        root = tmp_path / "root"
        (root / "usr/lib").mkdir(parents=True)
        done = subprocess.run(
            ignited(config, tmp_path), cwd=root, capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert "hash verification failed" in done.stdout
    assert not (root / f"var/cache/nvidiad/nvidiad-{__version__}-x86-64.tar.gz").exists()


def test_flatcar_with_the_extension_finds_it_where_extensions_are(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / f"nvidiad-{__version__}-x86-64.tar.gz").write_bytes(b"a bundle")
    bundles.sums(dist)
    with served(dist) as url:
        texts = bundles.rendered(dist, url, road.REPOSITORY, debian=False)
        config = tmp_path / "config.ign"
        config.write_text(butane.translated((texts / "butane/nvidiad-sysext.yaml").read_text()))
        root = tmp_path / "root"
        (root / "usr/lib").mkdir(parents=True)
        subprocess.run(ignited(config, tmp_path), cwd=root, check=True, capture_output=True)
    link = root / "etc/extensions/nvidiad.raw"
    inside = root / str(link.readlink()).lstrip("/")
    assert inside.read_bytes() == (dist / f"nvidiad-{__version__}-x86-64.raw").read_bytes()
    assert (
        "/usr/lib/nvidiad/bin/nvidiad activate" in (root / "etc/systemd/system/nvidia.service").read_text()
    )


# -- cloud-init ---------------------------------------------------------------------------------------------


def test_debian_with_cloud_init_installs_the_package_and_starts_it(tmp_path: Path) -> None:
    """By the modules that the example uses, as cloud-init runs them; its other modules stay out of it."""
    try:
        files = cloud.files()
    except BedError as error:
        pytest.skip(f"Debian's cloud-init cannot be had: {error}")
    suite = "bookworm" if "12" in Path("/etc/debian_version").read_text() else "trixie"
    dist = tmp_path / "dist"
    dist.mkdir()
    bundles.package(dist, __version__)
    (dist / f"nvidiad-{__version__}-x86-64.tar.gz").write_bytes(b"a bundle")
    bundles.sums(dist)
    texts = bundles.rendered(dist, WITHIN, road.REPOSITORY)
    with road.booted(suite, venv=False, packages=True) as host:
        serve_within(host, dist)
        road.publish(host)
        host.systemctl("stop", "kubelet.service")
        for part in (cloud.LIBRARY, "usr/bin/cloud-init", "usr/lib/cloud-init", "etc/cloud"):
            host.put(files / part, f"/{part}")
        host.write(
            "/etc/cloud/cloud.cfg.d/99-bed.cfg", "datasource_list: [NoCloud]\nssh_deletekeys: false\n"
        )
        host.write("/etc/nvidiad/conf.d/60-bed.toml", IMPATIENT)
        seed = "/var/lib/cloud/seed/nocloud"
        host.write(f"{seed}/meta-data", "instance-id: bed\n")
        host.put(texts / "cloud-init/deb.yaml", f"{seed}/user-data")
        host.run("cloud-init init --local", timeout=120, check=True)
        host.run("cloud-init init", timeout=120)
        for module in ("write_files", "runcmd", "scripts_user"):
            host.run(f"cloud-init single --name {module} --frequency always", timeout=120, check=True)
        road.wait_phase(host, "ready")
        assert (
            host.run("dpkg-query -W -f '${Status} ${Version}' nvidiad", check=True).out
            == f"install ok installed {__version__}"
        )
        assert not host.exists("/var/tmp/nvidiad-package")
        host.systemctl("start", "kubelet.service")
        assert in_order(host)


# -- Ansible, shell, container ------------------------------------------------------------------------------

_SSH = """#!/bin/sh
# A way into the bed where Ansible expects ssh: the command is the last argument.
for command; do :; done
echo $$ >{procs}
exec nsenter -t {pid} -m -u -i -n -p -C -- env -i {environment} sh -c "$command"
"""


def play(host: Host, book: Path, place: Path, *options: str) -> dict[str, int]:
    """Run a playbook against the host; what it counted."""
    way = place / "ssh"
    environment = shlex.join(f"{key}={value}" for key, value in ENVIRONMENT.items())
    way.write_text(_SSH.format(procs=host.processes, pid=host.pid, environment=environment))
    way.chmod(0o755)
    (place / "inventory").write_text("[gpu_nodes]\nbed ansible_python_interpreter=/usr/bin/python3\n")
    settings = {
        "ANSIBLE_SSH_EXECUTABLE": str(way),
        "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
        "ANSIBLE_SSH_ARGS": "",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOME": str(place / "ansible"),
        "LC_ALL": "C.UTF-8",
    }
    # There is no sudo in the bed, and whoever comes in is root.
    settled = ["--inventory", str(place / "inventory"), "--extra-vars", "ansible_become=false"]
    command = [str(TOOLS / "ansible-playbook"), *settled, *options, str(book)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"^bed .*: (.*)$", done.stdout, re.MULTILINE)
    assert counted is not None, done.stdout
    return {word.split("=")[0]: int(word.split("=")[1]) for word in counted[1].split()}


@pytest.mark.skipif(not (TOOLS / "ansible-playbook").exists(), reason="ansible-core is not installed")
def test_ansible_installs_once_and_a_shell_upgrades_under_the_running_driver(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    bundles.bundle(dist, __version__)
    bundles.sums(dist)
    book = bundles.rendered(dist, WITHIN, road.REPOSITORY, debian=False) / "ansible/site.yml"
    upgrade = bundles.bundle(dist, NEXT)
    bundles.sums(dist)
    digest = hashlib.sha256(upgrade.read_bytes()).hexdigest()
    with road.booted(venv=False) as host:
        serve_within(host, dist)
        road.publish(host)
        host.systemctl("stop", "kubelet.service")
        host.write("/etc/nvidiad/conf.d/60-bed.toml", IMPATIENT)

        assert play(host, book, tmp_path, "--check")["changed"] > 0
        assert not host.exists("/opt/nvidiad") and not host.exists("/etc/nvidiad/conf.d/50-ansible.toml")
        assert play(host, book, tmp_path)["changed"] > 0
        # Not before: on a host whose driver is still on its way that would be refused.
        road.wait_ready(host)
        host.systemctl("start", "kubelet.service")
        assert in_order(host)
        assert play(host, book, tmp_path)["changed"] == 0

        untouched, daemon = invocations(host, *UNTOUCHED), invocations(host, "nvidiad.service")
        url, script = f"{WITHIN}/{upgrade.name}", "/var/tmp/dist/provision/install.sh"
        refused = host.run(script, url, "0" * 64)
        assert refused.rc == 1 and "nothing was installed" in refused.err
        assert host.path("/opt/nvidiad/current").readlink() == Path(__version__)
        host.run(script, url, digest, timeout=120, check=True)
        assert host.path("/opt/nvidiad/current").readlink() == Path(NEXT)
        assert invocations(host, *UNTOUCHED) == untouched
        assert invocations(host, "nvidiad.service") != daemon
        road.wait_ready(host)
        again = host.run(script, url, digest, timeout=120, check=True)
        assert "installed already" in again.out
        _contained(host)


def _contained(host: Host) -> None:
    """nvidiad in an image, which looks at the host, and then is its daemon instead of systemd's."""
    context = "/var/tmp/image"
    host.put(bundles.tree(), context)
    host.put(CHECKOUT / "docker/daemon", context)
    host.write("/var/tmp/base.tar", image.base_tar())
    host.run("docker import /var/tmp/base.tar base:busybox", check=True)
    making = [
        "docker",
        "build",
        "-q",
        "--network=none",
        "--build-arg=BASE=base:busybox",
        "-t",
        "nvidiad:bed",
        context,
    ]
    host.run(*making, timeout=120, env={"DOCKER_BUILDKIT": "0"}, check=True)

    look = ["docker", "run", "--rm", "--network=none", "--pid=host", "--volume=/:/host:ro", "nvidiad:bed"]
    assert host.run(*look, "--version", check=True).out == f"nvidiad {__version__}\n"
    build = f"{RELEASE[0]}-{road.DRIVER}"
    assert f"'{build}' is on disk" in host.run(*look, "plan", check=True).out
    assert "ready - driver" in host.run(*look, "status", check=True).out

    untouched = invocations(host, *UNTOUCHED)
    own = ["docker", "run", "-d", "--name=nvidiad", "--privileged", "--pid=host", "--volume=/:/host:rshared"]
    host.run(*own, "nvidiad:bed", check=True)
    host.wait(lambda: host.state("nvidiad.service") == "inactive", "systemd's daemon is stopped")
    road.wait_phase(host, "ready")
    assert host.path("/opt/nvidiad/current").readlink() == Path(__version__)
    assert invocations(host, *UNTOUCHED) == untouched
    assert "nvidiad" in host.run("docker logs nvidiad 2>&1", check=True).out
    host.run("docker rm -f nvidiad", check=True)
    assert invocations(host, *UNTOUCHED) == untouched
