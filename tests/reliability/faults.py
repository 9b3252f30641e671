# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: what can go wrong, what status says, what is held, how it heals, and who proves it.

A new row needs a test that passes (`Proof`), and one run of that with NVIDIAD_RECORD=FILE, then
`python -m tests.reliability FILE`. Until then tests/unit/test_reliability.py is red.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from nvidiad.nouns.errors import Code
from nvidiad.nouns.steps import Step, step_name

STEPS = tuple(step_name(kind.__new__(kind)) for kind in get_args(Step))
KILL, POWER, FULL, READ_ONLY, DEAD = "SIGKILL", "power cut", "ENOSPC", "EROFS", "EIO"
FAULTS = (KILL, POWER, FULL, READ_ONLY, DEAD)

# What is held, and how it heals.
KUBELET = "the kubelet waits"
STAYS = "the driver in force stays, the kubelet runs"
REBOOT = "a reboot, no longer than `reboot.maximum`"
TRY = "by the next attempt, at the pace of the back-off"
LIFE = "by the next life, which begins at once"
BOOT = "by the next boot"
EVENT = "at once, by an event"
LOOK = "with the next look (`daemon.poll`, or `nvidiad reconcile`)"


@dataclass(frozen=True)
class Proof:
    """A test, or those of its cases in whose ids this is found."""

    path: str
    test: str
    case: str = ""

    def covers(self, node: str) -> bool:
        path, _, rest = node.partition("::")
        test, _, case = rest.partition("[")
        return (path, test) == (self.path, self.test) and bool(re.search(self.case, case.removesuffix("]")))


@dataclass(frozen=True)
class Row:
    """`subject` is a step or a party; without codes, status has no problem to tell."""

    subject: str
    fault: str
    codes: tuple[Code, ...]
    held: str
    heals: str
    proofs: tuple[Proof, ...]

    @property
    def id(self) -> str:
        return f"{self.subject}: {self.fault}"

    def covers(self, node: str) -> bool:
        return any(proof.covers(node) for proof in self.proofs)


@dataclass(frozen=True)
class Never:
    """Faults that these steps cannot have, and why."""

    steps: tuple[str, ...]
    faults: tuple[str, ...]
    why: str


def _host(name: str, test: str, case: str = "") -> Proof:
    return Proof(f"tests/host/test_{name}.py", f"test_{test}", case)


# -- steps -----------------------------------------------------------------------------------------

_KILLED = (
    "the_daemon_is_killed_on_the_road_from_nothing",
    "activation_is_killed",
    "deactivation_is_killed",
    "the_daemon_is_killed_while_it_puts_a_node_back",
    "the_overlay_is_mounted_and_taken_off_all_the_same",
    "the_daemon_is_killed_while_it_stages",
    "the_daemon_is_killed_while_it_renews_a_tree",
    "the_daemon_is_killed_while_it_removes_a_tree",
    "the_daemon_is_killed_while_it_drains",
    "the_daemon_is_killed_while_it_reboots_the_host",
)
_FETCHING = ("pull-image", "install-tree")
_AHEAD = ("renew-tree", "remove-tree", "raise-delay", "hold-reboot", "release-reboot", "reboot-host")


def _killed(step: str) -> Row:
    proofs = tuple(_host("kill", test, rf"_{step}(_|$)") for test in _KILLED)
    if step in _FETCHING:
        proofs += (_host("direct", "the_daemon_is_killed_while_it_fetches", rf"_{step}$"),)
    if step == "install-tree":
        proofs += (_host("direct", "the_daemon_is_killed_in_the_middle_of_a_stream"),)
    return Row(step, KILL, (), STAYS if step in _AHEAD else KUBELET, LIFE, proofs)


def _cut(step: str) -> Row:
    every = Proof(
        "tests/vm/test_step_power.py", "test_the_power_is_cut_in_the_middle_of_a_step", rf"^{step}$"
    )
    bed = ("", "_where_the_driver_is_in_force", "_at_the_overlay", "_while_it_looks_ahead")
    proofs = (every, *(_host("kill", f"the_power_is_cut{where}", rf"_{step}(_|$)") for where in bed))
    if step == "install-tree":
        proofs += (_host("direct", "the_power_is_cut_while_it_fetches"),)
    return Row(step, POWER, (), KUBELET, BOOT, proofs)


def _disk(
    step: str, test: str, held: str = KUBELET, heals: str = TRY, **codes: Code | None
) -> tuple[Row, ...]:
    return tuple(
        Row(
            step,
            fault,
            (code,) if code else (),
            held,
            heals,
            (
                _host("disk_faults", test, f"^{step}-{fault}$"),
                *([_host("direct", "a_disk_that_takes_nothing", fault)] if step == "install-tree" else []),
            ),
        )
        for fault, code in codes.items()
    )


_ACTIVATION, _NOTHING = "activation_on_a_broken_disk", "the_road_from_nothing_on_a_broken_disk"
_OFF, _NEXT = "deactivation_on_a_broken_disk", "looking_ahead_on_a_broken_disk"
_GATE = "a_gate_that_cannot_be_written_is_told_and_the_driver_comes_all_the_same"

BY_STEP = (
    *(_killed(step) for step in STEPS),
    *(_cut(step) for step in STEPS),
    *_disk(
        "write-gates",
        _GATE,
        "the kubelet, by nvidiad alone",
        ENOSPC=Code.DISK_FULL,
        EROFS=Code.READ_ONLY,
        EIO=Code.UNIT_FAILED,
    ),
    *_disk("pull-image", _NOTHING, ENOSPC=Code.DISK_FULL, EROFS=Code.READ_ONLY, EIO=Code.PULL_FAILED),
    *_disk("install-tree", _NOTHING, ENOSPC=Code.DISK_FULL, EROFS=Code.READ_ONLY, EIO=Code.IMAGE_FAILED),
    *_disk("renew-tree", _NEXT, STAYS, ENOSPC=Code.DISK_FULL, EROFS=Code.READ_ONLY, EIO=Code.IMAGE_FAILED),
    *_disk("remove-tree", _NEXT, STAYS, ENOSPC=None, EROFS=Code.READ_ONLY, EIO=Code.IMAGE_FAILED),
    *_disk(
        "raise-delay",
        _NEXT,
        STAYS,
        ENOSPC=Code.LOGIND_REFUSED,
        EROFS=Code.LOGIND_REFUSED,
        EIO=Code.LOGIND_REFUSED,
    ),
    *_disk(
        "reboot-host",
        "a_reboot_that_cannot_be_remembered_is_not_begun",
        "the reboot that nvidiad would ask for",
        ENOSPC=None,
        EROFS=None,
        EIO=None,
    ),
    *_disk("select-tree", _ACTIVATION, ENOSPC=Code.DISK_FULL, EROFS=Code.READ_ONLY, EIO=Code.IMAGE_FAILED),
    *_disk(
        "configure-linker",
        _ACTIVATION,
        ENOSPC=Code.DISK_FULL,
        EROFS=Code.READ_ONLY,
        EIO=Code.EXPOSURE_FAILED,
    ),
    *_disk("refresh-linker-cache", _ACTIVATION, ENOSPC=Code.EXPOSURE_FAILED, EROFS=Code.EXPOSURE_FAILED),
    *_disk("set-firmware-path", _ACTIVATION, EROFS=Code.EXPOSURE_FAILED),
    *_disk("make-nodes", _ACTIVATION, ENOSPC=Code.EXPOSURE_FAILED, EROFS=Code.EXPOSURE_FAILED),
    *_disk("remove-nodes", _OFF, EROFS=Code.EXPOSURE_FAILED),
)

DISK = (FULL, READ_ONLY, DEAD)
NEVER = (
    Never(("start-unit", "stop-unit", "reload-unit"), DISK, "it asks systemd, and writes nothing"),
    Never(
        ("hold-reboot", "release-reboot"),
        DISK,
        "the lock is a descriptor that logind gave and systemd keeps; nothing is written",
    ),
    Never(
        ("mount-overlay", "unmount-overlay"), DISK, "the overlay is read-only and has no place to write to"
    ),
    Never(
        ("load-host-modules", "load-module", "unload-module"),
        DISK,
        "it changes the kernel and no disk; a module that cannot be read is `tree-invalid`",
    ),
    Never(("check-driver",), DISK, "it only looks"),
    Never(("set-firmware-path",), (FULL, DEAD), "the path is a variable of the kernel: sysfs has no disk"),
    Never(("make-nodes", "remove-nodes"), (DEAD,), "/dev lies in memory"),
    Never(("remove-nodes",), (FULL,), "removing takes no room"),
    Never(
        ("refresh-linker-cache",),
        (DEAD,),
        "a host whose /etc is dead starts no program: neither ldconfig nor nvidiad",
    ),
)


# What was seen not to heal without a person, in the cases that are marked with it.
KNOWN: dict[tuple[str, str], str] = {}


# -- parties ---------------------------------------------------------------------------------------


def _row(subject: str, fault: str, code: Code | None, held: str, heals: str, *proofs: Proof) -> Row:
    return Row(subject, fault, (code,) if code else (), held, heals, proofs)


def _cause(subject: str, fault: str, code: Code, name: str) -> Row:
    test = "a_failure_is_told_by_its_code_and_heals_when_its_cause_ends"
    return _row(subject, fault, code, KUBELET, TRY, _host("failures", test, f"^{name}$"))


_LIE = "a_registry_that_is_not_well_is_told_and_the_pull_is_made_when_it_is"


def _lie(fault: str, code: Code, name: str) -> Row:
    return _row("registry", fault, code, KUBELET, TRY, _host("party_faults", _LIE, f"^{name}(-registry)?$"))


def _image(fault: str, code: Code, *names: str) -> Row:
    bad = "a_bad_image_is_refused_by_name_and_the_driver_in_force_stays"
    case = f"^({'|'.join(names)})(-registry)?$"
    heals = "as soon as a good image is under the tag, by the next attempt"
    return _row("image", fault, code, STAYS, heals, _host("bad_images", bad, case))


def _unvouched(fault: str, code: Code, name: str) -> Row:
    test = "what_nobody_vouches_for_is_refused_with_the_old_driver_in_force"
    heals = "as soon as it is signed by a key of `trust.keys`, by the next attempt"
    return _row("signature", fault, code, STAYS, heals, _host("trust", test, f"^{name}(-registry)?$"))


BY_PARTY = (
    # -- the container engine
    _cause("container engine", "absent", Code.ENGINE_UNREACHABLE, "engine stopped"),
    _cause("container engine", "hung", Code.ENGINE_UNREACHABLE, "engine frozen"),
    _row(
        "container engine",
        "restarted in mid-pull",
        Code.ENGINE_LOST,
        KUBELET,
        TRY,
        _host("failures", "an_engine_that_is_restarted_in_mid_pull_was_lost_and_the_pull_begins_again"),
        _host("images", "an_engine_that_restarts_is_lost_and_found"),
    ),
    _row(
        "container engine",
        "hung in mid-pull",
        Code.ENGINE_LOST,
        KUBELET,
        TRY,
        _host("failures", "an_engine_that_freezes_in_mid_pull_is_lost_until_it_goes_on"),
    ),
    _row(
        "container engine",
        "dies under the installer",
        Code.ENGINE_LOST,
        KUBELET,
        TRY,
        _host("images", "an_engine_that_dies_under_an_installer_is_no_dead_end"),
    ),
    _row(
        "container engine",
        "installer killed",
        None,
        KUBELET,
        TRY,
        _host("kill", "the_installers_container_is_killed"),
    ),
    _row(
        "container engine",
        "API too old",
        Code.ENGINE_TOO_OLD,
        KUBELET,
        TRY,
        _host("party_faults", "an_engine_that_is_too_old_is_told_until_there_is_another"),
    ),
    # -- the registry
    _cause("registry", "refuses connections", Code.REGISTRY_UNREACHABLE, "registry (stopped|killed)"),
    _cause("registry", "its name is unknown (DNS)", Code.REGISTRY_UNREACHABLE, "registry without a name"),
    _cause("registry", "its certificate is not trusted (TLS)", Code.REGISTRY_TLS, "authority unknown"),
    _row(
        "registry",
        "wants credentials, or others (401)",
        Code.REGISTRY_AUTH,
        KUBELET,
        TRY,
        _host(
            "failures",
            "access_is_refused_without_and_with_wrong_credentials_and_granted_with_the_right_ones",
        ),
    ),
    _lie("forbids it (403)", Code.REGISTRY_AUTH, "403"),
    _cause("registry", "has no such image (404)", Code.IMAGE_MISSING, "(image|repository) missing"),
    _row(
        "registry",
        "is asked too often (429, Retry-After)",
        Code.PULL_FAILED,
        KUBELET,
        TRY,
        _host("party_faults", _LIE, "^429 with Retry-After$"),
    ),
    Row(
        "registry",
        "is asked too often by nvidiad (429, Retry-After)",
        (Code.REGISTRY_UNREACHABLE,),
        KUBELET,
        TRY,
        (_host("party_faults", _LIE, "^429 with Retry-After-registry$"),),
    ),
    _row(
        "registry",
        "cuts every second connection (no container engine)",
        None,
        KUBELET,
        "what came stays, the rest is asked for (Range)",
        _host("direct", "a_connection_that_is_cut_is_taken_up_where_it_ended"),
    ),
    _row(
        "registry",
        "a mirror of it fails, or it itself (no container engine)",
        None,
        KUBELET,
        "the next one is asked",
        _host("direct", "a_mirror_is_asked_first_and_its_registry_where_it_fails"),
    ),
    _row(
        "registry",
        "a credential helper gives nothing for it",
        Code.REGISTRY_AUTH,
        KUBELET,
        TRY,
        _host("direct", "a_credential_helper_says_who_we_are"),
    ),
    _lie("fails (500, 503)", Code.REGISTRY_UNREACHABLE, "50[03]"),
    _row(
        "registry",
        "slow",
        None,
        KUBELET,
        "it is waited for as long as bytes come (`image.total-timeout`)",
        _host("party_faults", "a_slow_registry_is_waited_for_and_its_progress_shown"),
    ),
    _cause("registry", "frozen", Code.REGISTRY_STALLED, "registry frozen"),
    _row(
        "registry",
        "silent in mid-pull",
        Code.REGISTRY_STALLED,
        KUBELET,
        TRY,
        _host("failures", "a_registry_that_falls_silent_in_mid_pull_has_stalled_until_it_goes_on"),
        _host("images", "a_frozen_registry_is_noticed_in_time"),
    ),
    _row(
        "registry",
        "breaks off in mid-pull",
        Code.REGISTRY_UNREACHABLE,
        KUBELET,
        TRY,
        _host("failures", "a_registry_that_breaks_off_in_mid_pull_is_unreachable_until_it_is_back"),
        _host("images", "a_registry_that_dies_is_unreachable"),
    ),
    _row(
        "registry",
        "breaks off, an older image of the tag is here",
        Code.REGISTRY_UNREACHABLE,
        KUBELET,
        TRY,
        _host(
            "failures",
            "a_pull_that_fails_in_mid_stream_never_installs_an_older_image_of_the_same_tag",
        ),
        _host("images", "a_failed_pull_never_gives_the_older_image_of_the_tag"),
    ),
    _lie("layer cut short", Code.REGISTRY_UNREACHABLE, "truncated layer"),
    _lie("layer of another digest", Code.IMAGE_CORRUPT, "layer of another digest"),
    _row(
        "registry",
        "damaged on its own disk",
        Code.IMAGE_CORRUPT,
        KUBELET,
        TRY,
        _host("images", "what_is_damaged_in_the_registry_is_never_there"),
    ),
    _lie("manifest that is no JSON", Code.PULL_FAILED, "manifest that is no JSON"),
    _lie("manifest of an unknown kind", Code.PULL_FAILED, "manifest of an unknown kind"),
    _row(
        "registry",
        "image, or its tree, larger than the disk",
        Code.DISK_FULL,
        "nothing of it is downloaded",
        TRY,
        _host("gentle", "an_image_that_the_engine_has_no_room_for_is_not_pulled"),
        _host("gentle", "a_tree_that_the_install_root_has_no_room_for_is_not_pulled"),
        _host("direct", "a_disk_that_is_too_small_is_told_before_anything_is_fetched"),
    ),
    # -- what is in the image
    _image(
        "a file is not what the manifest says",
        Code.MANIFEST_INVALID,
        "wrong hash",
        "missing file",
        "extra file",
    ),
    _image(
        "a path or link leaves the tree",
        Code.MANIFEST_INVALID,
        "path that leaves the tree",
        "link that leaves the tree",
    ),
    _image(
        "no manifest, or half of one",
        Code.MANIFEST_INVALID,
        "half a manifest",
        "no manifest",
        "nothing in it",
        "schema of tomorrow",
    ),
    _image(
        "for another OS, kernel or driver",
        Code.IMAGE_MISMATCH,
        "other OS",
        "other kernel",
        "other driver",
        "lies about its kernel",
        "good, but says otherwise",
    ),
    _image("not a driver image", Code.IMAGE_FOREIGN, "not a driver", "labels of a stranger"),
    _image("modules of another kernel", Code.VERMAGIC_MISMATCH, "modules of another kernel"),
    # -- who vouches for it
    _unvouched("none", Code.SIGNATURE_MISSING, "unsigned"),
    _unvouched("by a key that nobody configured", Code.SIGNATURE_UNTRUSTED, "wrong key"),
    _unvouched("of what the tag named before", Code.SIGNATURE_MISSING, "re-tagged"),
    _unvouched("of another image, laid beside this one", Code.SIGNATURE_UNTRUSTED, "stale signature"),
    _unvouched("of an SBOM only", Code.SIGNATURE_MISSING, "only described"),
    _unvouched("good, and a layer is exchanged", Code.IMAGE_CORRUPT, "swapped layer"),
    _unvouched("good, and the file of the key is gone", Code.KEY_UNUSABLE, "no key"),
    # -- the bus and systemd
    _row(
        "bus",
        "restarted",
        None,
        STAYS,
        LIFE,
        _host("order", "nvidiad_comes_back_by_itself_after_the_bus_was_away"),
    ),
    _row(
        "bus",
        "killed, frozen for 8 s, its socket gone",
        None,
        STAYS,
        LIFE,
        _host("party_faults", "a_bus_that_is_lost_costs_nvidiad_a_restart_and_nothing_else"),
    ),
    _row(
        "systemd",
        "daemon-reload, daemon-reexec, driver in force",
        None,
        STAYS,
        "nothing is lost",
        _host("order", "systemd_may_reload_and_reexecute_itself"),
    ),
    _row(
        "systemd",
        "daemon-reload, daemon-reexec in mid-activation",
        None,
        KUBELET,
        "nothing is lost",
        _host("party_faults", "systemd_is_made_anew_in_the_middle_of_an_activation"),
    ),
    _row(
        "systemd",
        "job cancelled",
        Code.UNIT_FAILED,
        KUBELET,
        TRY,
        _host("party_faults", "a_start_that_somebody_cancels_is_made_again"),
    ),
    _row(
        "systemd",
        "nvidia.service masked",
        Code.UNIT_MASKED,
        KUBELET,
        TRY,
        _host("party_faults", "a_driver_unit_that_is_masked_holds_the_kubelet_until_it_is_not"),
    ),
    _row(
        "systemd",
        "kubelet.service masked",
        None,
        STAYS,
        "a warning; whoever masked it starts it",
        _host("party_faults", "a_kubelet_that_is_masked_is_told_and_let_be"),
    ),
    _row(
        "systemd",
        "nvidia-persistenced.service fails",
        None,
        STAYS,
        "systemd starts it again",
        _host("party_faults", "a_persistence_daemon_that_fails_keeps_nobody_from_the_gpu"),
    ),
    _row(
        "systemd",
        "the kubelet used up its starts while it waited",
        None,
        KUBELET,
        "it is started once the driver is there",
        _host("road", "a_kubelet_that_used_up_its_starts_gets_another_one_and_only_one"),
    ),
    _row(
        "nvidiad",
        "hangs",
        None,
        STAYS,
        "the watchdog ends it, and a new life begins",
        _host("order", "nvidiad_that_hangs_is_shot_by_the_watchdog_and_nothing_else_is_touched"),
    ),
    _row(
        "nvidiad",
        "killed again and again",
        None,
        STAYS,
        LIFE,
        _host("order", "systemd_never_gives_nvidiad_up"),
    ),
    _row(
        "nvidiad",
        "cannot write what it remembers",
        None,
        "nothing; a warning",
        LOOK,
        _host("disk_faults", "what_cannot_be_remembered_stops_nothing"),
    ),
    # -- the kernel
    _row(
        "udev",
        "3000 events nobody reads, the queue overflows",
        None,
        STAYS,
        EVENT,
        _host("party_faults", "a_flood_of_device_events_is_survived_and_a_lost_one_is_made_up_for"),
    ),
    _row(
        "kernel",
        "somebody else's module has the GPU",
        Code.MODULE_FOREIGN,
        KUBELET,
        EVENT,
        _host("party_faults", "a_module_of_somebody_else_has_the_gpu"),
    ),
    _row(
        "kernel",
        "refuses a module",
        Code.SYMBOL_UNKNOWN,
        KUBELET,
        TRY,
        _host("order", "the_kubelet_does_not_start_while_the_module_is_refused"),
    ),
    _row(
        "clock",
        "set back by ten years, and forward",
        None,
        KUBELET,
        "at once: no wait is longer for it",
        Proof("tests/vm/test_clock.py", "test_a_clock_that_jumps_holds_nothing_up"),
    ),
    # -- those who share the host
    _row(
        "configuration",
        "broken while nvidiad runs",
        None,
        "the last good one stays in force; a warning names every fault",
        "with the reload of a good one",
        _host("config", "a_broken_file_at_a_reload_leaves_the_last_good_configuration_in_force"),
        _host("config", "what_cannot_be_read_is_named_and_not_taken"),
    ),
    _row(
        "configuration",
        "broken at the start",
        Code.CONFIG_INVALID,
        KUBELET,
        "with the reload of a good one",
        _host(
            "config", "a_daemon_that_starts_with_a_broken_configuration_changes_nothing_until_it_is_mended"
        ),
    ),
    _row(
        "configuration",
        "lost",
        Code.NOT_CONFIGURED,
        STAYS,
        "with the reload of a good one",
        _host("config", "a_host_with_the_driver_in_force_that_loses_its_configuration_keeps_the_driver"),
    ),
    _row(
        "system extensions",
        'merged over our overlay (`install.exposure = "overlay"`)',
        Code.EXPOSURE_FAILED,
        STAYS,
        EVENT,
        _host("party_faults", "a_refresh_of_system_extensions_over_our_overlay"),
    ),
    _row(
        "system extensions",
        "take our overlay away",
        None,
        STAYS,
        EVENT,
        _host("road", "an_overlay_taken_away_under_us_is_put_back_without_help"),
    ),
    _row(
        "another installer",
        "its libraries come first",
        Code.VERSION_MISMATCH,
        KUBELET,
        "with the next look after they are gone",
        _host("mismatch", "libraries_of_another_driver_hold_the_kubelet_until_they_are_gone"),
    ),
    _row(
        "another installer",
        "a directory called `current`",
        Code.OTHER_OWNER,
        STAYS,
        "nothing of it is touched",
        _host("road", "a_foreign_directory_called_current_stays_and_frees_nobody"),
    ),
    _row(
        "somebody",
        "removes `current`, or lets it name something else",
        None,
        STAYS,
        LOOK,
        _host("party_faults", "current_is_put_right_and_nothing_that_runs_is_touched"),
    ),
    _row(
        "somebody",
        "removes the tree in force",
        None,
        STAYS,
        LOOK,
        _host("road", "a_tree_that_was_removed_is_pulled_again_and_the_kubelet_stays"),
    ),
    _row(
        "somebody",
        "removes a file of the tree in force",
        Code.TREE_INVALID,
        STAYS,
        "`nvidiad check` tells; once the tree is removed, as the remedy says, it is pulled again",
        _host("party_faults", "a_file_that_is_deleted_of_a_tree_in_force_is_told_by_check"),
    ),
    _row(
        "somebody",
        "removes device nodes",
        None,
        STAYS,
        LOOK,
        _host("road", "a_device_node_that_was_deleted_comes_back_when_asked"),
    ),
    # -- the update of the OS
    _row(
        "update engine",
        "restarts, hangs, is mute, refused, or says nonsense",
        None,
        REBOOT,
        "its word counts again as soon as it has one",
        _host("staging", "a_fault_of_update_engine_neither_ends_nor_renews_the_hold"),
        _host("staging", "a_hold_ends_at_its_maximum_when_update_engine_never_comes_back"),
    ),
    _row(
        "logind",
        "restarted while it has our lock",
        None,
        REBOOT,
        "nothing is lost",
        _host("reboot_gate", "the_lock_is_still_there_after_a_restart_of_logind"),
        _host("reboot_gate", "a_lock_that_logind_has_forgotten_is_not_held_and_taken_again"),
    ),
)

ROWS = (*BY_STEP, *BY_PARTY)


def proved(node: str) -> tuple[Row, ...]:
    """The rows that this test, by its node id, is a proof of."""
    return tuple(row for row in ROWS if row.covers(node))
