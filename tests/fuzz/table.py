# SPDX-License-Identifier: Apache-2.0
"""All targets by name."""

from __future__ import annotations

from tests.fuzz import of_daemon, of_images, of_layers

TARGETS = {target.name: target for target in (*of_daemon.TARGETS, *of_images.TARGETS, *of_layers.TARGETS)}
