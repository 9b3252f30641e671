# SPDX-License-Identifier: Apache-2.0
"""Failures: each has a stable code, a sentence that names the thing, and a remedy."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Every reason for which the GPU may not be usable; stable, documented, never renamed."""

    # the host as it is
    NO_GPU = "no-gpu"
    OTHER_OWNER = "other-owner"
    LOCKDOWN = "lockdown"
    # configuration
    CONFIG_INVALID = "config-invalid"
    NOT_CONFIGURED = "not-configured"
    # container engine
    ENGINE_UNREACHABLE = "engine-unreachable"
    ENGINE_LOST = "engine-lost"
    ENGINE_TOO_OLD = "engine-too-old"
    # registry and image
    REGISTRY_UNREACHABLE = "registry-unreachable"
    REGISTRY_STALLED = "registry-stalled"
    REGISTRY_AUTH = "registry-auth"
    REGISTRY_TLS = "registry-tls"
    IMAGE_MISSING = "image-missing"
    IMAGE_CORRUPT = "image-corrupt"
    IMAGE_FOREIGN = "image-foreign"
    IMAGE_MISMATCH = "image-mismatch"
    IMAGE_FAILED = "image-failed"
    INSTALL_BUSY = "install-busy"
    PULL_FAILED = "pull-failed"
    PULL_TIMEOUT = "pull-timeout"
    IMAGE_UNBUILDABLE = "image-unbuildable"
    # who vouches for an image
    SIGNATURE_MISSING = "signature-missing"
    SIGNATURE_UNTRUSTED = "signature-untrusted"
    KEY_UNUSABLE = "key-unusable"
    # tree
    MANIFEST_INVALID = "manifest-invalid"
    TREE_INVALID = "tree-invalid"
    TREE_MISSING = "tree-missing"
    DISK_FULL = "disk-full"
    READ_ONLY = "read-only"
    # kernel
    VERMAGIC_MISMATCH = "vermagic-mismatch"
    MODULE_REFUSED = "module-refused"
    MODULE_REJECTED = "module-rejected"
    MODULE_IN_USE = "module-in-use"
    MODULE_FOREIGN = "module-foreign"
    GPU_REFUSED = "gpu-refused"
    GPU_UNSUPPORTED = "gpu-unsupported"
    FLAVOUR_WRONG = "flavour-wrong"
    SYMBOL_UNKNOWN = "symbol-unknown"
    SYMBOL_MISMATCH = "symbol-mismatch"
    DEPENDENCY_MISSING = "dependency-missing"
    FABRIC_MISSING = "fabric-missing"
    FABRIC_MISMATCH = "fabric-mismatch"
    FABRIC_UNSUPPORTED = "fabric-unsupported"
    DRIVER_MISMATCH = "driver-mismatch"
    VERSION_MISMATCH = "version-mismatch"
    DRIVER_TOO_OLD = "driver-too-old"
    DRIVER_FALLBACK = "driver-fallback"
    # what comes next
    NEXT_UNKNOWN = "next-unknown"
    NEXT_UNREADABLE = "next-unreadable"
    LOGIND_REFUSED = "logind-refused"
    # exposure and order
    EXPOSURE_FAILED = "exposure-failed"
    UNIT_FAILED = "unit-failed"
    UNIT_MASKED = "unit-masked"
    BUS_LOST = "bus-lost"
    # beside a driver in force
    CDI_FAILED = "cdi-failed"
    NVML_FAILED = "nvml-failed"
    GPU_LOST = "gpu-lost"
    GPU_RECOVERY_NEEDED = "gpu-recovery-needed"
    # making images (nvidiad-image)
    RECIPE_INVALID = "recipe-invalid"
    FEED_UNREACHABLE = "feed-unreachable"
    FEED_INVALID = "feed-invalid"
    RELEASE_UNKNOWN = "release-unknown"
    DOWNLOAD_FAILED = "download-failed"
    DIGEST_MISMATCH = "digest-mismatch"
    SIGNATURE_INVALID = "signature-invalid"
    DISK_IMAGE_INVALID = "disk-image-invalid"
    SOURCE_INVALID = "source-invalid"
    BUILD_FAILED = "build-failed"
    PROOF_FAILED = "proof-failed"
    PUSH_REFUSED = "push-refused"
    # the cluster (nvidiad-kubernetes)
    API_UNREACHABLE = "api-unreachable"
    API_REFUSED = "api-refused"
    # the conversation with nvidiad itself
    NOT_RUNNING = "not-running"
    NOT_AUTHORIZED = "not-authorized"
    COMMAND_FAILED = "command-failed"
    INTERNAL = "internal"


LONGEST = 4096
"""Characters of a sentence."""


class Failure(Exception):
    """Something that could not be done; `retry` says whether trying again without a person can help."""

    retry = False

    def __init__(self, code: Code, sentence: str, remedy: str = "") -> None:
        # Sentences quote what others wrote: journal, status and clients get no more than can be read.
        short = sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 1]}…"
        super().__init__(short)
        self.code = code
        self.sentence = short
        self.remedy = remedy

    def __str__(self) -> str:
        return self.sentence


class Transient(Failure):
    """May pass by itself: tried again with back-off."""

    retry = True


class Permanent(Failure):
    """Stays until something on the host, in the registry or in the configuration changes."""
