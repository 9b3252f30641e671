# SPDX-License-Identifier: Apache-2.0
"""A proof's boot: the order of insertion, consoles as real machines wrote them, and what they prove."""

from __future__ import annotations

import re

import pytest

from nvidiad.image.thought import boot as boots
from nvidiad.image.thought.boot import Boot, Console, Insertion, Outcome
from nvidiad.image.thought.elf import KernelModule
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import ModuleFile

KERNEL = "6.1.0-50-amd64"
MINE, OTHER = f"{KERNEL} SMP preempt mod_unload modversions ", "6.12.117+deb12 SMP mod_unload modversions "

LISTING = """\
kernel/drivers/gpu/drm/drm.ko:
kernel/drivers/gpu/drm/drm_kms_helper.ko.xz: kernel/drivers/i2c/i2c-core.ko kernel/drivers/gpu/drm/drm.ko
kernel/drivers/acpi/video.ko: kernel/drivers/platform/wmi.ko kernel/drivers/video/backlight.ko
kernel/drivers/i2c/i2c-core.ko:
kernel/drivers/platform/wmi.ko:
kernel/drivers/video/backlight.ko:
kernel/net/llc/llc.ko:
"""
DEPENDS = {
    "kernel/drivers/gpu/drm/drm_kms_helper.ko.xz": ("i2c-core", "drm"),
    "kernel/drivers/acpi/video.ko": ("wmi", "backlight", "binfmt_script"),
}
BUILTIN = "kernel/fs/binfmt_script.ko\nkernel/drivers/i2c/i2c-dev.ko\n"


def depends(path: str) -> tuple[str, ...]:
    return DEPENDS.get(path) or DEPENDS.get(f"{path}.xz", ())


def module(name: str, depends: str = "", exports: str = "") -> KernelModule:
    file = ModuleFile(name, f"lib/modules/x/{name}.ko", "535.261.03", MINE, tuple(depends.split()))
    return KernelModule(file, "Dual MIT/GPL", (), frozenset(), frozenset(exports.split()), {})


NVIDIA = module("nvidia", "drm", "nvidia_register nvidia_cards")
UVM, MODESET = module("nvidia_uvm", "nvidia"), module("nvidia_modeset", "nvidia video")
DRM = module("nvidia_drm", "drm drm_kms_helper nvidia-modeset i2c_dev")


@pytest.mark.parametrize(
    "listing", [LISTING, re.sub(r"(?m)(\.xz)?:.*", "", LISTING)], ids=["modules.dep", "modules.order"]
)
def test_what_modules_depend_on_comes_before_them(listing: str) -> None:
    found = boots.insertion([DRM, MODESET, NVIDIA, UVM], listing, BUILTIN, depends)
    assert [boots.file_module(path) for path in found.host] == [
        *("drm", "wmi", "backlight", "video", "i2c_core", "drm_kms_helper")
    ]
    assert [each.name for each in found.modules] == ["nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm"]
    assert found.missing == ()


def test_what_is_nowhere_is_named() -> None:
    needs = {"kernel/drivers/gpu/drm/drm.ko": ("gone",)}
    found = boots.insertion(
        [module("nvidia", "ecc drm")], LISTING, BUILTIN, lambda path: needs.get(path, ())
    )
    assert found.missing == (("nvidia", "ecc"), ("drm", "gone"))
    assert found.host == ("kernel/drivers/gpu/drm/drm.ko",)


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="nvidia -> nvidia_uvm -> nvidia"):
        boots.insertion([module("nvidia", "nvidia-uvm"), UVM], "", "", depends)


# As 6.1.0-56-cloud-amd64 wrote it in QEMU 7.2.
REAL = """\
\r
@nvidiad kernel 6.1.0-50-amd64\r
@nvidiad insert drm\r
@nvidiad status 0 \r
@nvidiad insert nvidia\r
@nvidiad status 19 insmod: can't insert '/nvidiad/modules/nvidia.ko': No such device\r
@nvidiad log [    2.045647] nvidia: loading out-of-tree module taints kernel.\r
@nvidiad log [    2.059954] NVRM: No NVIDIA GPU found.\r
@nvidiad insert nvidia_uvm\r
@nvidiad status 2 insmod: can't insert '/nvidiad/modules/nvidia_uvm.ko': unknown symbol in module\r
@nvidiad log [    2.251393] nvidia_uvm: Unknown symbol nvidia_register (err -2)\r
@nvidiad end\r
[    2.496431] reboot: Power down\r
"""


def test_a_real_console_is_read() -> None:
    boot = boots.read_console(REAL)
    assert (boot.kernel, boot.complete) == (KERNEL, True)
    assert [(each.module, each.status) for each in boot.outcomes] == [
        *(("drm", 0), ("nvidia", 19), ("nvidia_uvm", 2))
    ]
    nvidia = boot.outcome("nvidia")
    assert nvidia is not None and nvidia.said.endswith("No such device")
    assert nvidia.log[-1] == "NVRM: No NVIDIA GPU found."
    assert boot.outcome("nvidia_drm") is None


def test_a_log_cannot_pass_for_the_word_of_our_init() -> None:
    text = "@nvidiad kernel 6.1\n@nvidiad insert nvidia\n@nvidiad log @nvidiad status 0\n"
    boot = boots.read_console(text)
    assert boot.outcomes == (Outcome("nvidia", None, "", ("@nvidiad status 0",)),)
    assert not boot.complete


@pytest.mark.parametrize(
    ("text", "ended", "passed", "words"),
    [
        pytest.param(REAL, True, True, "booted in QEMU and was off after 3 s", id="well"),
        pytest.param("", False, False, "was killed after 3 s; its console stayed empty", id="silent"),
        pytest.param(
            "[ 1.0] VFS: Unable to mount root fs\n[ 1.1] Kernel panic - not syncing\n"
            "[ 1.2] Call Trace:\n[ 1.3]  </TASK>\n[ 1.4] Kernel Offset: disabled\n",
            True,
            False,
            "ended after 3 s; its last words: VFS: Unable to mount root fs; Kernel panic - not syncing",
            id="panic-before-init",
        ),
        pytest.param(
            "@nvidiad kernel 6.6.1\n@nvidiad end\n", True, False, "calls itself '6.6.1'", id="other-kernel"
        ),
        pytest.param(
            f"@nvidiad kernel {KERNEL}\n@nvidiad insert nvidia\n[ 2.0] Kernel panic: BUG\n",
            True,
            False,
            "went down while 'nvidia' was inserted; its last words: Kernel panic: BUG",
            id="panic-in-a-module",
        ),
        pytest.param(
            f"@nvidiad kernel {KERNEL}\n@nvidiad insert nvidia\n",
            False,
            False,
            "did not come back within 3 s while 'nvidia' was inserted",
            id="hangs-in-a-module",
        ),
    ],
)
def test_what_became_of_the_machine(text: str, ended: bool, passed: bool, words: str) -> None:  # noqa: FBT001
    check = boots.boot_check(boots.read_console(text), Console(text, ended, 3.0), KERNEL)
    assert check.passed is passed and words in check.sentence
    assert check.code is (None if passed else Code.PROOF_FAILED)


def outcome(status: int, said: str, *log: str, name: str = "nvidia") -> Outcome:
    return Outcome(name, status, f"insmod: can't insert '/nvidiad/modules/{name}.ko': {said}", log)


UNKNOWN = "unknown symbol in module, or unknown parameter"


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        pytest.param(Outcome("nvidia", 0, "", ()), None, "was loaded by kernel", id="loaded"),
        pytest.param(
            outcome(19, "No such device", "NVRM: No NVIDIA GPU found."), None, "(ENODEV)", id="no-gpu"
        ),
        pytest.param(
            outcome(22, "Invalid argument", "module compiled without IB peer memory symbols present"),
            None,
            "no peer memory",
            id="peermem",
        ),
        pytest.param(
            outcome(22, "Invalid argument", "nvidia-modeset: Version mismatch"),
            Code.MODULE_REFUSED,
            "Invalid argument; the kernel says: nvidia-modeset: Version mismatch",
            id="other-einval",
        ),
        pytest.param(
            outcome(8, "invalid module format", "nvidia: disagrees about version of symbol module_layout"),
            Code.VERMAGIC_MISMATCH,
            f"(ENOEXEC): it was built for '{MINE.strip()}', that kernel's own modules for '{OTHER.strip()}'",
            id="other-abi",
        ),
        pytest.param(
            outcome(22, "Invalid argument", "nvidia: disagrees about version of symbol drm_open"),
            Code.VERMAGIC_MISMATCH,
            "disagrees about version of symbol drm_open",
            id="one-symbol-of-another-abi",
        ),
        pytest.param(
            outcome(8, "Exec format error", "version magic 'a' should be 'b'"),
            Code.VERMAGIC_MISMATCH,
            "built for",
            id="other-texts",
        ),
        pytest.param(
            outcome(
                2, UNKNOWN, "nvidia: Unknown symbol drm_open (err -2)", "nvidia: Unknown symbol b (err -2)"
            ),
            Code.SYMBOL_UNKNOWN,
            "imports 'drm_open', 'b', which kernel",
            id="unknown-symbols",
        ),
        pytest.param(outcome(2, UNKNOWN), Code.SYMBOL_UNKNOWN, "did not name", id="unknown-and-unnamed"),
        pytest.param(
            outcome(129, "Key was rejected by service", "Loading of unsigned module is rejected"),
            Code.MODULE_REJECTED,
            "Loading of unsigned module is rejected",
            id="unsigned",
        ),
        pytest.param(
            outcome(126, "Required key not available"), Code.MODULE_REJECTED, "signed", id="unknown-key"
        ),
        pytest.param(
            outcome(
                1, "Operation not permitted", "Lockdown: busybox: unsigned module loading is restricted"
            ),
            Code.LOCKDOWN,
            "Lockdown: busybox",
            id="lockdown",
        ),
        pytest.param(
            outcome(139, "", "BUG: kernel NULL"), Code.MODULE_REFUSED, "BUG: kernel NULL", id="oops"
        ),
        pytest.param(Outcome("nvidia", 139, "", ()), Code.MODULE_REFUSED, "status 139", id="says-nothing"),
    ],
)
def test_what_an_insertion_proves(found: Outcome, code: Code | None, words: str) -> None:
    said, sentence = boots.judge(found, NVIDIA, KERNEL, OTHER, {})
    assert said is code and words in sentence and "'nvidia'" in sentence


def test_a_module_that_waits_for_one_of_the_image_fits() -> None:
    log = ("nvidia_uvm: Unknown symbol nvidia_register (err -2)",)
    waits = outcome(2, UNKNOWN, *log, name="nvidia_uvm")
    no_gpu = outcome(19, "No such device")
    insertion = Insertion((), (NVIDIA, UVM), ())
    checks = boots.insert_checks(Boot(KERNEL, (no_gpu, waits), True, ""), insertion, KERNEL, MINE)  # noqa: FBT003
    assert [(check.name, check.passed) for check in checks] == [
        *(("insert nvidia", True), ("insert nvidia_uvm", True))
    ]
    assert (
        "wait" not in checks[0].sentence and "from 'nvidia', not loaded without a GPU" in checks[1].sentence
    )
    # The same words with nvidia in the kernel: then nobody is waited for.
    live = Boot(KERNEL, (Outcome("nvidia", 0, "", ()), waits), True, "")  # noqa: FBT003
    assert not boots.insert_checks(live, insertion, KERNEL, MINE)[1].passed


def test_a_failure_of_the_kernels_own_modules_is_told_beside() -> None:
    insertion = Insertion(("kernel/a/video.ko",), (NVIDIA, UVM), ())
    outcomes = (
        Outcome("video", 22, "insmod: can't insert 'video.ko': Invalid argument", ()),
        outcome(2, UNKNOWN, "nvidia: Unknown symbol acpi_video (err -2)"),
    )
    first, second = boots.insert_checks(Boot(KERNEL, outcomes, False, ""), insertion, KERNEL, MINE)  # noqa: FBT003
    assert not first.passed and "'video' said: insmod: can't insert" in first.sentence
    assert not second.passed and "never came to the insertion of 'nvidia_uvm'" in second.sentence
