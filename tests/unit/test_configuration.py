# SPDX-License-Identifier: Apache-2.0
"""What is in force while the configuration is at fault: the last good one, but for whom to trust."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from nvidiad import configuration
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Signatures
from nvidiad.thought.settings import Settings
from tests.unit.world import Quiet

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD = '[driver]\nversion = "535.309.01"\n[image]\nrepository = "registry.example/nvidia-driver"\n'
SLIP = "[stage]\nspraed = 3\n"
KEYS = '[trust]\nkeys = ["/etc/nvidiad/keys/images.pem"]\n'


class Etc:
    """The files of a host's configuration, and the copy of the last good one."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "etc/nvidiad.toml"
        (root / "etc/conf.d").mkdir(parents=True)
        self.log = Quiet()

    def write(self, text: str, name: str = "") -> None:
        (self.root / "etc/conf.d" / name if name else self.file).write_text(text)

    def read(self) -> Settings:
        """As a daemon does that has just been started."""
        return configuration.read_and_keep(self.file, self.root, self.log)

    def fallen_back(self, before: Settings | None = None) -> Settings:
        return configuration.last_good_settings(self.file, self.root, before)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def test_the_copy_is_in_force_while_a_file_has_a_fault(etc: Etc) -> None:
    etc.write(GOOD)
    good = etc.read()
    etc.write(SLIP, "60-stage.toml")
    with pytest.raises(Failure, match="spraed") as caught:
        etc.read()
    assert caught.value.code is Code.CONFIG_INVALID
    assert etc.fallen_back() == good
    assert configuration.settings_in_force(etc.file, etc.root, etc.log) == good
    assert etc.log.events("warning") == ["the last good configuration is used"]


def test_without_a_copy_nothing_is_configured(etc: Etc) -> None:
    etc.write(GOOD)
    etc.write(SLIP, "60-stage.toml")
    assert etc.fallen_back() == Settings()
    with pytest.raises(Failure, match="spraed"):
        configuration.settings_in_force(etc.file, etc.root, etc.log)


def test_what_nobody_has_configured_yet_is_not_kept(etc: Etc) -> None:
    etc.write("")
    etc.read()
    assert not (etc.root / "var/lib/nvidiad/configuration.json").exists()


def test_a_copy_that_cannot_be_written_stops_nothing(etc: Etc) -> None:
    (etc.root / "var").write_text("")
    etc.write(GOOD)
    assert etc.read().configured
    assert etc.log.events("warning") == ["no copy of the configuration is kept, proceeding anyway"]


@pytest.mark.parametrize(
    ("prepare", "policy"),
    [
        pytest.param(lambda etc: etc.write(KEYS, "50-trust.toml"), Signatures.REQUIRE, id="keys rolled out"),
        pytest.param(lambda etc: None, Signatures.OFF, id="nothing of it"),
        pytest.param(
            lambda etc: etc.write(KEYS.replace("keys", "kyes"), "50-trust.toml"),
            Signatures.OFF,
            id="a slip in it, too",
        ),
        pytest.param(lambda etc: etc.write("[trust\n", "50-trust.toml"), Signatures.OFF, id="no TOML"),
    ],
)
def test_a_slip_elsewhere_does_not_undo_whom_to_trust(
    etc: Etc, prepare: Callable[[Etc], None], policy: Signatures
) -> None:
    etc.write(GOOD)
    before = etc.read()
    prepare(etc)
    etc.write(SLIP, "60-stage.toml")
    # At a start, at a reload, and of an activation.
    assert etc.fallen_back().trust.signatures is policy
    assert etc.fallen_back(before).trust.signatures is policy
    assert configuration.settings_in_force(etc.file, etc.root, etc.log).trust.signatures is policy
    assert etc.fallen_back().driver == before.driver


def test_a_fault_in_whom_to_trust_leaves_those_before(etc: Etc) -> None:
    etc.write(GOOD)
    etc.write(KEYS, "50-trust.toml")
    etc.read()
    etc.write('[trust]\npolicy = "of"\n', "90-trust.toml")
    assert etc.fallen_back().trust.keys == (PurePosixPath("/etc/nvidiad/keys/images.pem"),)
    assert etc.fallen_back().trust.signatures is Signatures.REQUIRE
