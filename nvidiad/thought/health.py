# SPDX-License-Identifier: Apache-2.0
"""Health: what NVIDIA's own nvidia-smi says of the GPUs, read into values and sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Problem
from nvidiad.nouns.surroundings import GpuState, Word
from nvidiad.thought.render import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.nouns.model import Gpu
    from nvidiad.nouns.surroundings import Inventory

_FIELDS = ("driver_version", "pci.bus_id", "uuid", "gpu_recovery_action", "name")
# Drivers before 560 do not know it.
_RECOVERY = "gpu_recovery_action"
_UNKNOWN_FIELD = 2
"""The exit status of nvidia-smi for arguments that it does not know."""

# The exit status of nvidia-smi is what NVML returned.
_NOT_LOADED, _NOT_FOUND, _LOST, _RESET, _MISMATCH = 9, 6, 15, 16, 18
_ADDRESS = re.compile(r"([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])")
_UUID = re.compile(r"GPU-[0-9a-f-]{8,60}")
_KERNEL_LOG = "Read why: journalctl -k -g NVRM."
_RESETS = "/opt/nvidia/current/bin/nvidia-smi --gpu-reset -i ADDRESS"
_NO_ACTION = ("none", "n/a", "not supported", "unknown error")
_REMEDIES = {
    "gpu reset": f"Stop what uses the GPU and reset it: {_RESETS}.",
    "reset": f"Stop what uses the GPU and reset it: {_RESETS}.",
    "bus reset": "Stop what uses the GPU and reset its bus, or reboot.",
    "node reboot": "Reboot this host.",
    "reboot": "Reboot this host.",
    "system reboot": "Reboot this host.",
    "drain p2p": "Let what runs on the GPU end; it uses no peer until then.",
    "drain and reset": f"Let what runs on the GPU end, then reset it: {_RESETS}.",
}


def knows_less(status: int, text: str) -> bool:
    """Whether this nvidia-smi is older than one of the questions."""
    return status == _UNKNOWN_FIELD or "not a valid field" in text


def key(inventory: Inventory) -> str:
    """What an answer is about: it says nothing of another driver, or of other GPUs."""
    return " ".join((inventory.driver, *(gpu.address for gpu in inventory.gpus)))


def query(*, recovery: bool) -> tuple[str, ...]:
    """The arguments of nvidia-smi."""
    fields = [field for field in _FIELDS if recovery or field != _RECOVERY]
    return (f"--query-gpu={','.join(fields)}", "--format=csv,noheader")


def read(status: int, text: str, *, recovery: bool, gpus: Sequence[Gpu], loaded: str) -> Word:
    """What nvidia-smi said, about the GPUs that the bus has and the driver is bound to."""
    states: list[GpuState] = []
    for line in text.splitlines()[:1000]:
        if state := _state(line, loaded, recovery=recovery):
            states.append(state)
    if problem := _whole(status, text, loaded):
        return Word(problem=problem, gpus=tuple(states))
    known = {state.address for state in states}
    for gpu in gpus:
        if gpu.bound == "nvidia" and not gpu.switch and gpu.address not in known:
            states.append(GpuState(gpu.address, "", "", _absent(gpu.address, text)))
    return Word(gpus=tuple(sorted(states, key=lambda state: state.address)))


def hung(seconds: float) -> Problem:
    """Why nothing is known of the GPUs: nobody answered in time."""
    return Problem(
        Code.NVML_FAILED,
        f"nvidia-smi did not say within {seconds:g} s how the GPUs are",
        f"A GPU may hang. {_KERNEL_LOG}",
    )


def _whole(status: int, text: str, loaded: str) -> Problem | None:
    """What keeps NVML from saying anything of any GPU."""
    if status == _MISMATCH:
        return Problem(
            Code.VERSION_MISMATCH,
            f"NVML refuses driver {loaded}: its library is of another version",
            "See what 'nvidiad check' says of the libraries.",
        )
    if status in (0, _NOT_FOUND, _LOST, _RESET):
        return None
    why = "no driver answers it" if status == _NOT_LOADED else _one_line(text) or f"it exits with {status}"
    return Problem(Code.NVML_FAILED, f"nvidia-smi does not say how the GPUs are: {why}", _KERNEL_LOG)


def _state(line: str, loaded: str, *, recovery: bool) -> GpuState | None:
    fields = [field.strip() for field in line.split(",", 4 if recovery else 3)]
    if len(fields) != (5 if recovery else 4):
        return None
    if not recovery:
        fields.insert(3, "")
    version, bus, uuid, action, model = fields
    if (address := _address(bus)) is None:
        return None
    problem = None
    # In brackets is why NVML does not say it, in place of any of them; a model may be called whatever.
    reasons = " ".join((version, uuid, action, model if model.startswith("[") else ""))
    if _says(reasons, "lost"):
        problem = _lost(address)
    elif _says(reasons, "requires reset", "reset required"):
        problem = _recovery(address, "reset")
    elif action and not action.startswith("[") and action.lower() not in _NO_ACTION:
        problem = _recovery(address, action)
    elif version != loaded and re.fullmatch(r"[0-9.]+", version):
        problem = Problem(
            Code.VERSION_MISMATCH,
            f"NVML says driver {version} of the GPU at {address}, but driver {loaded} is loaded",
            "See what 'nvidiad check' says of the libraries.",
        )
    return GpuState(address, uuid if _UUID.fullmatch(uuid) else "", _one_line(model)[:100], problem)


def _absent(address: str, text: str) -> Problem:
    about = [line for line in text.splitlines() if address.lower().partition(":")[2] in line.lower()]
    if any(_says(line, "reset") for line in about):
        return _recovery(address, "reset")
    if any(_says(line, "lost") for line in about):
        return _lost(address)
    said = f" ({_one_line(about[0])})" if about else ""
    return Problem(
        Code.GPU_LOST,
        f"the driver has the GPU at {address}, and NVML cannot use it{said}",
        f"{_KERNEL_LOG} Most often a reset or a reboot brings it back; firmware may be missing.",
    )


def _lost(address: str) -> Problem:
    return Problem(
        Code.GPU_LOST,
        f"the GPU at {address} is lost: it does not answer on its bus any more",
        f"Reboot this host; where it comes again, look at the card, its slot and its power. {_KERNEL_LOG}",
    )


def _recovery(address: str, action: str) -> Problem:
    remedy = _REMEDIES.get(action.lower(), "See NVIDIA's manual for this recovery action.")
    return Problem(
        Code.GPU_RECOVERY_NEEDED,
        f"the GPU at {address} needs recovery: {_one_line(action)[:60].lower()}",
        remedy.replace("ADDRESS", address),
    )


def _address(text: str) -> str | None:
    """As the kernel writes it: NVML has eight digits for the domain, and capitals."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):04x}:{bus.lower()}:{device.lower()}.{function}"


def _says(line: str, *words: str) -> bool:
    return any(word in line.lower() for word in words)


def _one_line(text: str) -> str:
    joined = clean(text)
    return joined if len(joined) <= 300 else f"{joined[:299]}…"
