# SPDX-License-Identifier: Apache-2.0
"""The registries inside a host: plain, with TLS, and with TLS and a password, all over one storage."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.beds.common import cached, require, run_checked

if TYPE_CHECKING:
    from pathlib import Path

PORTS = {"plain": 5000, "tls": 5443, "auth": 5444}
ADDRESSES = {"plain": "127.0.0.1:5000", "tls": "reg.test:5443", "auth": "reg.test:5444"}
USER, PASSWORD = "user", "secret"
UNIT = """[Unit]
Description=Registry on port %i
[Service]
ExecStart=/usr/bin/docker-registry serve /etc/registry/%i.yml
"""


def certificates() -> Path:
    """A directory with a test authority's `ca.crt`, and `server.crt` and `server.key` for reg.test."""

    def build(partial: Path) -> None:
        require("openssl", "apache2-utils")
        partial.mkdir()
        new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        authority = [
            "-x509",
            "-days",
            "3650",
            "-subj",
            "/CN=bed",
            "-keyout",
            f"{partial}/ca.key",
            "-out",
            f"{partial}/ca.crt",
        ]
        run_checked([*new, *authority], "openssl req -x509")
        server = [
            "-subj",
            "/CN=reg.test",
            "-keyout",
            f"{partial}/server.key",
            "-out",
            f"{partial}/server.csr",
        ]
        run_checked([*new, *server], "openssl req")
        (partial / "names").write_text("subjectAltName=DNS:reg.test,IP:10.99.0.1\n")
        sign = [
            "openssl",
            "x509",
            "-req",
            "-days",
            "3650",
            "-CAcreateserial",
            "-extfile",
            f"{partial}/names",
        ]
        sign += ["-CA", f"{partial}/ca.crt", "-CAkey", f"{partial}/ca.key", "-in", f"{partial}/server.csr"]
        run_checked([*sign, "-out", f"{partial}/server.crt"], "openssl x509")
        run_checked(["htpasswd", "-Bbc", f"{partial}/htpasswd", USER, PASSWORD], "htpasswd")

    return cached("registry", [USER, PASSWORD, "reg.test", "10.99.0.1"], build)


def configuration(kind: str) -> str:
    """What docker-registry reads for one of the three kinds."""
    address = "127.0.0.1" if kind == "plain" else "10.99.0.1"
    tls = (
        ", tls: {certificate: /etc/registry/server.crt, key: /etc/registry/server.key}"
        if kind != "plain"
        else ""
    )
    auth = "auth: {htpasswd: {realm: bed, path: /etc/registry/htpasswd}}\n" if kind == "auth" else ""
    storage = (
        "filesystem: {rootdirectory: /var/registry}, delete: {enabled: true}, "
        "maintenance: {uploadpurging: {enabled: false}}"
    )
    return (
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{{storage}}}\n"
        f'http: {{addr: "{address}:{PORTS[kind]}"{tls}}}\n{auth}'
    )


def lay_out(disk: Path) -> None:
    """Write all three registries' files into a host's disk, before its first boot."""
    place = disk / "etc/registry"
    place.mkdir(parents=True)
    source = certificates()
    for name in ("ca.crt", "server.crt", "server.key", "htpasswd"):
        shutil.copy(source / name, place / name)
    for kind, port in PORTS.items():
        (place / f"{port}.yml").write_text(configuration(kind))
    for kind in ("tls", "auth"):
        trusted = disk / f"etc/docker/certs.d/{ADDRESSES[kind]}"
        trusted.mkdir(parents=True)
        shutil.copy(source / "ca.crt", trusted / "ca.crt")
    units = disk / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    (units / "registry@.service").write_text(UNIT)
