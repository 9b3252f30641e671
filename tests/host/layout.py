# SPDX-License-Identifier: Apache-2.0
"""The fixed texts on a host's disk: units, masks, and the environment of its commands."""

from __future__ import annotations

ENVIRONMENT = {
    "HOME": "/root",
    "TERM": "dumb",
    "LANG": "C.UTF-8",
    "PATH": "/opt/nvidiad/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    # libudev takes nothing but sysfs itself for devices; the stand-in GPU lies on a layer over it.
    "SYSTEMD_DEVICE_VERIFY_SYSFS": "0",
}
# They would reach this machine's own kernel, or wait for a console that is not there.
MASKED = (
    *(
        "systemd-sysctl.service",
        "systemd-modules-load.service",
        "sys-kernel-debug.mount",
        "sys-kernel-tracing.mount",
    ),
    *("dev-hugepages.mount", "console-getty.service", "getty.target", "systemd-pstore.service"),
)
KUBELET = """[Unit]
Description=Kubelet (stand-in)
[Service]
ExecStart=/bin/sleep infinity
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
SYSTEMD = """[Manager]
DefaultEnvironment=SYSTEMD_DEVICE_VERIFY_SYSFS=0
"""
UPDATE_ENGINE = """[Unit]
Description=Update Engine (stand-in)
[Service]
Type=notify
ExecStart=/usr/bin/python3 /etc/bed/update_engine.py
Restart=always
[Install]
WantedBy=multi-user.target
"""
