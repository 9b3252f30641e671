# SPDX-License-Identifier: Apache-2.0
"""Everything a bed is made of, from nothing: Debian packages, Debian trees, a virtual environment."""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CHECKOUT = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_FALLBACK_REQUIREMENTS = ("pystemd", "docker", "pyudev", "structlog", "urllib3")
_HOST_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd", "kmod", "iproute2", "iptables", "procps"),
    *("ca-certificates", "curl", "jq", "openssl", "apache2-utils", "strace", "lsof", "pciutils", "file"),
    *("docker.io", "docker-registry", "skopeo", "busybox-static"),
    *("python3", "python3-venv", "python3-dev", "python3-jeepney"),
    *("gcc", "libc6-dev", "libsystemd-dev", "pkg-config", "umockdev", "gir1.2-umockdev-1.0"),
)
_EXTRA_PACKAGES: Mapping[str, tuple[str, ...]] = {"trixie": ("docker-cli", "docker-buildx", "cosign")}
_SLIM_OPTIONS = (
    '--aptopt=Acquire::Languages "none"',
    '--aptopt=APT::Install-Recommends "false"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


class BedError(RuntimeError):
    """A bed cannot be made on this machine; the text says why and what would help."""


def cache_dir() -> Path:
    """Where the beds keep what is slow to make; NVIDIAD_BED_CACHE moves it."""
    path = Path(os.environ.get("NVIDIAD_BED_CACHE", "/var/cache/nvidiad-beds"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(name: str, folder: Path | None = None) -> Iterator[None]:
    """Hold a lock of the cache, or of another folder: what runs in parallel builds each thing once."""
    with ((folder or cache_dir()) / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def digest(*inputs: object) -> str:
    """A short key for whatever the inputs are; equal inputs give equal keys on every machine."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cached(name: str, inputs: object, build: Callable[[Path], None]) -> Path:
    """What `build` makes from `inputs`: built beside, once, and renamed into the cache when complete."""
    path = cache_dir() / f"{name}-{digest(inputs)}"
    if path.exists():
        return path
    with locked(name):
        if path.exists():
            return path
        partial = path.with_name(path.name + ".partial")
        _discard(partial)
        try:
            build(partial)
            partial.rename(path)
        finally:
            _discard(partial)
    return path


def require(*packages: str) -> None:
    """Install the Debian packages that this machine lacks; no service is started by that."""
    missing = _missing(packages)
    if not missing:
        return
    if os.geteuid() != 0:
        raise BedError(f"missing Debian packages: {' '.join(missing)}; run as root, or install them")
    if shutil.which("apt-get") is None:
        raise BedError(
            f"missing Debian packages: {' '.join(missing)}; this machine has no apt-get to install them with"
        )
    with locked("apt"), _no_services():
        missing = _missing(packages)
        if not missing:
            return
        _apt("update", "-q")
        _apt("install", "-q", "-y", "--no-install-recommends", *missing)


def debian_tree(
    name: str,
    suite: str,
    packages: Sequence[str],
    *,
    variant: str = "minbase",
    components: Sequence[str] = ("main",),
    options: Sequence[str] = _SLIM_OPTIONS,
    finish: Callable[[Path], None] | None = None,
    salt: object = "",
) -> Path:
    """A Debian tree in the cache; `finish` gets it before it is complete, `salt` is what that depends on."""

    def build(partial: Path) -> None:
        if os.geteuid() != 0:
            raise BedError(f"the {suite} tree {name} is not in {cache_dir()} and only root can make it")
        require("mmdebstrap", "debian-archive-keyring")
        command = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            f"--variant={variant}",
            *options,
            *_apt_settings(),
        ]
        command += [
            f"--components={','.join(components)}",
            f"--include={','.join(packages)}",
            suite,
            str(partial),
        ]
        run_checked(command, f"mmdebstrap {suite} for {name}")
        if finish is not None:
            finish(partial)

    inputs = [suite, sorted(packages), variant, list(components), list(options), salt]
    return cached(f"{name}-{suite}", inputs, build)


def unpacked(name: str, *packages: str) -> Path:
    """The files of Debian packages of this machine's release, which are not installed by that."""

    def build(partial: Path) -> None:
        partial.mkdir()
        with tempfile.TemporaryDirectory() as made:
            # As root apt would want to be another user, who may not write there.
            command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages]
            run_checked(
                ["sh", "-euc", f'cd "$0"; {shlex.join(command)}', made], f"apt-get download for {name}"
            )
            for package in Path(made).glob("*.deb"):
                run_checked(
                    ["dpkg-deb", "--extract", str(package), str(partial)], f"unpacking {package.name}"
                )

    return cached(name, [sorted(packages), platform.freedesktop_os_release()["VERSION_ID"]], build)


def host_root(suite: str) -> Path:
    """The Debian tree that the host bed boots: systemd, D-Bus, udev, Docker, a registry, Python."""
    packages = [*_HOST_PACKAGES, *_EXTRA_PACKAGES.get(suite, ())]

    def finish(tree: Path) -> None:
        # What Debian enables would start with every host, timers too; a host enables what its test wants.
        for target in ("multi-user", "sockets", "timers", "getty", "sysinit"):
            shutil.rmtree(tree / f"etc/systemd/system/{target}.target.wants", ignore_errors=True)

    return debian_tree("host", suite, packages, finish=finish, salt="nothing enabled")


def host_venv(suite: str, extra: Sequence[str] = ()) -> Path:
    """The virtual environment of a host's /opt/nvidiad: what nvidiad requires, and not nvidiad itself."""
    root = host_root(suite)
    wanted = [*requirements(), *extra]

    def build(partial: Path) -> None:
        partial.mkdir()
        # Scripts in a virtual environment carry its path, so it is made under its final name.
        install = ["/opt/nvidiad/bin/pip", "install", "--quiet", "--no-warn-script-location", *wanted]
        script = f"python3 -m venv /opt/nvidiad && {shlex.join(install)}"
        chroot_with_pip(root, {partial: Path("/opt/nvidiad")}, script)

    return cached(f"venv-{suite}", [root.name, wanted], build)


def requirements() -> list[str]:
    """What setup.cfg says nvidiad needs at run time."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    listed = parser.get("options", "install_requires", fallback="")
    wanted = [
        line.strip() for line in listed.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    return wanted or list(_FALLBACK_REQUIREMENTS)


def chroot_with_pip(root: Path, binds: Mapping[Path, Path], script: str) -> None:
    """Run a shell script in the tree with this machine's pip settings; it writes to the binds only."""
    settings = _pip_settings()
    readable = {Path("/etc/resolv.conf"): Path("/etc/resolv.conf")}
    certificates = (
        settings.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    )
    environment = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **settings}
    if Path(certificates).is_file():
        inside = Path("/tmp/certificates.crt")
        readable[Path(certificates).resolve()] = inside
        environment |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(inside))
    for variable in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        if variable in os.environ:
            environment[variable] = os.environ[variable]
    for place in _local_places(settings):
        readable[place] = place
    with locked(f"chroot-{root.name}"), _scratch_root(root) as scratch:
        lines = ["set -eu"]
        layers = f"lowerdir={root},upperdir={scratch}/upper,workdir={scratch}/work"
        lines.append(shlex.join(["mount", "-t", "overlay", "overlay", "-o", layers, f"{scratch}/root"]))
        lines.append(f"cd {shlex.quote(str(scratch))}/root; mount -t proc proc proc; mount --rbind /dev dev")
        for source, target in {**readable, **binds}.items():
            point = shlex.quote(f".{target}")
            make = (
                f"mkdir -p {point}"
                if source.is_dir()
                else f"mkdir -p $(dirname {point}); rm -f {point}; : >{point}"
            )
            lines.append(f"{make}; mount --bind {shlex.quote(str(source))} {point}")
        lines.append(shlex.join(["exec", "env", "-i", *(f"{k}={v}" for k, v in environment.items())]))
        lines[-1] += " " + shlex.join(["chroot", ".", "/bin/sh", "-euc", script])
        run_checked(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)],
            f"in {root.name}",
        )


def run_checked(command: Sequence[str], what: str, **environment: str) -> str:
    """Run a command of this machine and give its output; an error carries the end of what it said."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", **environment},
    )
    if done.returncode != 0:
        raise BedError(f"{what} failed with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def _missing(packages: Sequence[str]) -> list[str]:
    if shutil.which("dpkg-query") is None:
        raise BedError(
            f"the beds are made from Debian packages ({' '.join(packages)}); this machine has no dpkg"
        )
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages]
    shown = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    present = {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in present]


def _apt(verb: str, *arguments: str) -> None:
    # Another test run, or unattended-upgrades, may hold dpkg's lock for a while.
    try:
        run_checked(["apt-get", "-o", "DPkg::Lock::Timeout=600", verb, *arguments], f"apt-get {verb}")
    except BedError as error:
        raise BedError(f"{error}\n(is this machine offline, or are its package sources wrong?)") from error


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks policy-rc.d before it starts a service; ours says no, and goes away again."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def _apt_settings() -> list[str]:
    """Network settings of this machine's apt, which mmdebstrap does not read by itself."""
    names = r"Acquire::(Check-Valid-Until|Check-Date|https?::Proxy|https::CaInfo|Retries)"
    dumped = run_checked(["apt-config", "dump"], "apt-config dump")
    lines = [line.rstrip(";") for line in dumped.splitlines() if re.match(rf'{names} ".+";$', line)]
    return [f"--aptopt={line}" for line in lines]


def _pip_settings() -> dict[str, str]:
    """This machine's pip settings as environment variables, from its files and from PIP_* (which win)."""
    settings: dict[str, str] = {}
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is not None:
        listed = subprocess.run([pip, "config", "list"], capture_output=True, text=True, check=False).stdout
        for line in listed.splitlines():
            matched = re.match(r"(?:global|install)\.([a-z-]+)='(.*)'$", line)
            if matched:
                settings["PIP_" + matched[1].upper().replace("-", "_")] = matched[2].replace("\\n", " ")
    settings |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return settings | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_CACHE_DIR": "1"}


def _local_places(settings: Mapping[str, str]) -> list[Path]:
    """Files and directories of this machine that pip's settings name."""
    names = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")
    words = " ".join(settings.get(name, "") for name in names)
    paths = [
        Path(word.removeprefix("file://")) for word in words.split() if word.startswith(("/", "file:///"))
    ]
    # An index names its files relative to itself, often beside it.
    wider = [path.parent if path.name == "simple" else path for path in paths]
    return [path for path in dict.fromkeys(wider) if path.exists()]


@contextmanager
def _scratch_root(root: Path) -> Iterator[Path]:
    scratch = root.with_name(root.name + ".scratch")
    _discard(scratch)
    for name in ("upper", "work", "root"):
        (scratch / name).mkdir(parents=True)
    try:
        yield scratch
    finally:
        _discard(scratch)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
