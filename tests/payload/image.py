# SPDX-License-Identifier: Apache-2.0
"""Images of payloads: as a build context for docker, and packed in Python for beds without docker."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from nvidiad.image.world import tar
from tests.beds.common import require
from tests.payload import elf
from tests.payload.builder import image_labels

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKOUT = Path(__file__).resolve().parents[2]
TRANSPORT = CHECKOUT / "docker/transport"
BASE_TAG = "nvidiad-test/base:busybox"

APPLETS = (
    *("sh", "awk", "cat", "chmod", "cp", "cut", "df", "echo", "env", "false", "grep", "id", "ls", "mkdir"),
    *("mv", "printf", "readlink", "rm", "sed", "sha256sum", "sleep", "stat", "sync", "tr", "true", "uname"),
    "wc",
)

_BUILD_ARGUMENTS: Mapping[str, str] = {
    "io.nvidiad.schema": "SCHEMA",
    "io.nvidiad.kind": "KIND",
    "io.nvidiad.version": "VERSION",
    "io.nvidiad.minimum-driver": "MINIMUM_DRIVER",
    "io.nvidiad.driver": "DRIVER",
    "io.nvidiad.flavour": "FLAVOUR",
    "io.nvidiad.product": "PRODUCT",
    "io.nvidiad.os.id": "OS_ID",
    "io.nvidiad.os.version": "OS_VERSION",
    "io.nvidiad.kernel": "KERNEL",
    "io.nvidiad.vermagic": "VERMAGIC",
    "io.nvidiad.manifest": "MANIFEST",
    "io.nvidiad.size": "SIZE",
}

_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def _static_busybox() -> bytes:
    """This machine's BusyBox, nothing where it has none or one that needs libraries."""
    found = shutil.which("busybox")
    busybox = Path(found).read_bytes() if found else b""
    return busybox if busybox and elf.is_static(busybox) else b""


@cache
def base_files() -> Mapping[str, bytes | str]:
    """The files of a base image of this machine's BusyBox (bytes) and links to it (str), by path."""
    busybox = _static_busybox()
    if not busybox:
        require("busybox-static")
        busybox = _static_busybox()
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    files: dict[str, bytes | str] = {"bin/busybox": busybox}
    files |= {f"bin/{applet}": "busybox" for applet in APPLETS}
    if "flock" in listed:
        return files | {"bin/flock": "busybox"}
    # Debian's BusyBox has no flock: util-linux's comes along with what it is linked to.
    flock = shutil.which("flock")
    if flock is None:
        raise RuntimeError("there is no flock on this machine: apt-get install util-linux")
    linked = subprocess.run(["ldd", flock], capture_output=True, text=True, check=True).stdout
    files["bin/flock"] = Path(flock).read_bytes()
    for path in re.findall(r"(?:=> |^\s*)(/\S+)", linked, re.MULTILINE):
        files[path.lstrip("/")] = Path(path).read_bytes()
    return files


def place_of(tree: Path) -> str:
    """Where a payload's tree is in its image."""
    folder = tree.parent.name
    return f"opt/cuda/{tree.name}" if folder == "cuda" else f"opt/nvidia/{folder}/{tree.name}"


def image_context(tree: Path, dest: Path) -> Path:
    """Lay out a docker build context for a payload tree's image, and in base/ one for a BusyBox base."""
    dest.mkdir(parents=True, exist_ok=True)
    shutil.copy2(TRANSPORT / "Dockerfile", dest)
    shutil.copy2(TRANSPORT / "install", dest)
    # What is not the Dockerfile's is not sent to the engine with it.
    (dest / ".dockerignore").write_text("base\ninstall\nopt\n")
    place = dest / place_of(tree)
    if tree.is_dir():
        shutil.copytree(tree, place, symlinks=True)
    else:
        (dest / "opt").mkdir()
        (dest / "opt/README").write_text("This is not a driver image.\n")
    with TemporaryDirectory(dir=dest.parent) as made:
        root = Path(made)
        shutil.copytree(dest / "opt", root / "opt", symlinks=True)
        shutil.copy2(dest / "install", root)
        tar.pack(root, dest / "transport.tar", 0)
    for name, content in base_files().items():
        path = dest / "base/rootfs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            path.chmod(0o755)
    (dest / "base/Dockerfile").write_text("FROM scratch\nCOPY rootfs/ /\n")
    return dest


def build_script(
    context: str, tag: str, *, labels: Mapping[str, str], base: str | None = None, docker: str = "docker"
) -> str:
    """Shell commands that build an image from a context; without `base`, from its BusyBox base."""
    commands = []
    if base is None:
        commands.append(shlex.join([docker, "build", "--quiet", "--tag", BASE_TAG, f"{context}/base"]))
    command = [docker, "build", "--quiet", "--tag", tag, "--build-arg", f"BASE={base or BASE_TAG}"]
    for label, argument in _BUILD_ARGUMENTS.items():
        if label in labels:
            command += ["--build-arg", f"{argument}={labels[label]}"]
    if not labels:
        # The Dockerfile sets them all; an image that is not a driver's comes from a file of its own.
        command += ["--file", f"{context}/Dockerfile.plain"]
        plain = f'FROM {base or BASE_TAG}\\nADD transport.tar /\\nENTRYPOINT ["/install"]\\n'
        commands.append(f"printf {shlex.quote(plain)} >{shlex.quote(context)}/Dockerfile.plain")
    return " && ".join([*commands, shlex.join([*command, context])])


@dataclass(frozen=True, slots=True)
class Image:
    """An image as a registry holds it."""

    config: bytes
    layers: tuple[bytes, ...]
    """Compressed with gzip."""
    manifest: bytes

    @property
    def digest(self) -> str:
        """What a pull by digest names."""
        return _digest(self.manifest)

    @property
    def blobs(self) -> dict[str, bytes]:
        """Configuration and layers by digest."""
        return {_digest(blob): blob for blob in (self.config, *self.layers)}

    def archive(self, tag: str) -> bytes:
        """What `docker load` reads."""
        name = _digest(self.config).partition(":")[2]
        files: dict[str, bytes | str] = {f"{name}.json": self.config}
        files |= {f"layer{number}.tar": gzip.decompress(layer) for number, layer in enumerate(self.layers)}
        listed = [f"layer{number}.tar" for number in range(len(self.layers))]
        index = [{"Config": f"{name}.json", "RepoTags": [tag], "Layers": listed}]
        files["manifest.json"] = json.dumps(index).encode()
        return _tar(files)

    def push(
        self, registry: str, repository: str, tag: str, headers: Mapping[str, str] | None = None
    ) -> str:
        """Push to a registry (`http://localhost:5000`) and give the digest."""
        for digest, blob in self.blobs.items():
            if not _exists(f"{registry}/v2/{repository}/blobs/{digest}", headers):
                started = _send("POST", f"{registry}/v2/{repository}/blobs/uploads/", b"", "", headers)
                place = started if "://" in started else registry + started
                place += ("&" if "?" in place else "?") + f"digest={digest}"
                _send("PUT", place, blob, "application/octet-stream", headers)
        _send("PUT", f"{registry}/v2/{repository}/manifests/{tag}", self.manifest, _OCI_MANIFEST, headers)
        return self.digest


def image(tree: Path, *, labels: Mapping[str, str] | None = None) -> Image:
    """The image of a payload tree; labels are those of its manifest unless they are given."""
    files: dict[str, bytes | str] = {"install": (TRANSPORT / "install").read_bytes()}
    modes: dict[str, int] = {}
    place = place_of(tree)
    for path in sorted(tree.rglob("*")) if tree.is_dir() else ():
        name = f"{place}/{path.relative_to(tree).as_posix()}"
        if path.is_symlink():
            files[name] = str(path.readlink())
        elif path.is_file():
            files[name] = path.read_bytes()
            modes[name] = path.stat().st_mode & 0o7777
    tars = (base_tar(), _tar(files, modes))
    layers = (_compressed_base(), gzip.compress(tars[1], 1, mtime=0))
    wanted = dict(image_labels(tree) if labels is None else labels)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": ["/install"],
                "Labels": wanted,
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests/payload"}] * len(tars),
        },
        sort_keys=True,
    ).encode()
    described = [{"mediaType": _OCI_LAYER, "size": len(layer), "digest": _digest(layer)} for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": _OCI_MANIFEST,
        "config": {"mediaType": _OCI_CONFIG, "size": len(config), "digest": _digest(config)},
        "layers": described,
    }
    return Image(config, layers, json.dumps(manifest, sort_keys=True).encode())


def pack_image(tree: Path, tag: str, *, labels: Mapping[str, str] | None = None) -> bytes:
    """An archive for `docker load` of the image of a payload tree, made without docker."""
    return image(tree, labels=labels).archive(tag)


@cache
def base_tar() -> bytes:
    """The BusyBox base as `docker import` takes it."""
    return _tar(base_files())


@cache
def _compressed_base() -> bytes:
    return gzip.compress(base_tar(), 6, mtime=0)


def _tar(files: Mapping[str, bytes | str], modes: Mapping[str, int] | None = None) -> bytes:
    """A tar of files (bytes) and links (str); the same input gives the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            content = files[name]
            if isinstance(content, str):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
                archive.addfile(info)
            else:
                info.size, info.mode = len(content), (modes or {}).get(name, 0o755)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _exists(url: str, headers: Mapping[str, str] | None) -> bool:
    try:
        _send("HEAD", url, None, "", headers)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return False
        raise
    return True


def _send(method: str, url: str, body: bytes | None, kind: str, headers: Mapping[str, str] | None) -> str:
    given = {**(headers or {}), **({"Content-Type": kind} if kind else {})}
    request = urllib.request.Request(url, data=body, method=method, headers=given)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return str(answer.headers.get("Location", ""))
