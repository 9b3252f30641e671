# SPDX-License-Identifier: Apache-2.0
"""Devices: which GPUs a driver serves, and which branch or flavour is for those that it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Flavour

if TYPE_CHECKING:
    from collections.abc import Sequence

# Device ids, and the last branch of drivers for them (NVIDIA's list of legacy GPUs).
_LEGACY: tuple[tuple[int, int, int], ...] = (
    (0x06C0, 0x06DF, 390),
    (0x0DC0, 0x0FBF, 390),
    (0x0FC0, 0x103F, 470),
    (0x1040, 0x10BF, 390),
    (0x1140, 0x117F, 390),
    (0x1180, 0x11FF, 470),
    (0x1200, 0x127F, 390),
    (0x1280, 0x133F, 470),
    (0x1340, 0x1DFF, 580),
)
# Without the processor that the open modules need.
_NO_GSP = (0x1340, 0x1DFF)
# Grace Hopper, and Blackwell with all that came later: no proprietary modules.
_OPEN_ONLY = ((0x2340, 0x237F), (0x2900, 0xFFFF))


def unserved(
    device: str, driver: str, flavour: Flavour | None, pci: Sequence[str]
) -> tuple[Code, str, str] | None:
    """Why a driver may not serve a device, as the end of a sentence that begins with the GPU, and a remedy.

    An empty list says nothing; what is certain of a whole generation of GPUs is told all the same.
    """
    if never := hopeless(device, driver, flavour, pci):
        return never
    if not pci or device in pci:
        return None
    return (
        Code.GPU_UNSUPPORTED,
        f"may not be served by driver {driver} ({flavour}): it is none of the devices that its image names",
        "Where it stays without, set 'driver.version' to one that serves it (a newer one for a new GPU).",
    )


def hopeless(
    device: str, driver: str, flavour: Flavour | None, pci: Sequence[str]
) -> tuple[Code, str, str] | None:
    """The same, where it is certain: no driver of this branch or flavour serves GPUs of this generation."""
    if device in pci:
        return None
    number = int(device.partition(":")[2], 16)
    branch = int(driver.partition(".")[0]) if naming.is_driver(driver) else 0
    last = next((last for first, end, last in _LEGACY if first <= number <= end), 0)
    if last and branch > last:
        flavoured = ", with the proprietary modules" if _within(number, _NO_GSP) else ""
        return (
            Code.GPU_UNSUPPORTED,
            f"is not served by driver {driver}: {last} is the last branch for it",
            f"Set 'driver.version' to a driver of branch {last}{flavoured}.",
        )
    if flavour is Flavour.OPEN and _within(number, _NO_GSP):
        return (
            Code.FLAVOUR_WRONG,
            f"needs the proprietary modules, and those of driver {driver} here are the open ones",
            f"Publish the image of driver {driver} with the proprietary flavour.",
        )
    if flavour is Flavour.PROPRIETARY and any(_within(number, ids) for ids in _OPEN_ONLY):
        return (
            Code.FLAVOUR_WRONG,
            f"needs the open modules, and those of driver {driver} here are the proprietary ones",
            f"Publish the image of driver {driver} with the open flavour.",
        )
    return None


def _within(number: int, ids: tuple[int, int]) -> bool:
    return ids[0] <= number <= ids[1]
