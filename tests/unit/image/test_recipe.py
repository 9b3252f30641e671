# SPDX-License-Identifier: Apache-2.0
"""The recipe: what a file means, and every fault of it at once."""

from __future__ import annotations

import pytest

from nvidiad.image.nouns.model import Architecture, DriverSource, Family, SourceKind
from nvidiad.image.nouns.recipe import KERNEL_TAG, TAG, DriverWish, OsWish, Recipe
from nvidiad.image.thought import recipe
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Flavour

SHA = "0123456789abcdef" * 4
FLATCAR = '[[os]]\nfamily = "flatcar"\nchannels = ["stable"]\n'
DEBIAN = '[[os]]\nfamily = "debian"\nsuites = ["bookworm"]\nflavours = ["amd64"]\n'
RUN = f"""[[driver]]
version = "535.309.01"
flavour = "proprietary"
source = "run"
location = "https://example.invalid/NVIDIA.run"
sha256 = "{SHA}"
"""
TOP = 'repository = "registry.example/nvidia-driver"\n'
WHOLE = f"""\
repository = "registry.example/nvidia-driver"
developers = "registry.example"
base = "alpine:3.20"
connections = 16

[[os]]
family = "flatcar"
channels = ["stable", "beta", "lts-2024"]
architectures = ["amd64", "arm64"]
newest = 2
mirror = "https://mirror.example/flatcar"

[[os]]
family = "debian"
suites = ["bookworm", "bookworm-security"]
kernels = ["6.1.0-50-amd64"]
tag = "{{kernel}}-{{driver}}{{-product}}"

[[driver]]
version = "535.309.01"
flavour = "proprietary"
product = "tesla"
source = "run"
location = "https://example.invalid/NVIDIA.run"
sha256 = "{SHA}"
graphics = true
families = ["flatcar"]

[[driver]]
version = "535.261.03"
flavour = "open"
source = "debian"
location = "bookworm"

[sign]
key = "/etc/nvidiad-image/key.pem"
"""


def test_a_whole_recipe() -> None:
    made = recipe.load("recipe.toml", WHOLE)
    assert made == Recipe(
        repository="registry.example/nvidia-driver",
        developers="registry.example",
        base="alpine:3.20",
        connections=16,
        key="/etc/nvidiad-image/key.pem",
        systems=(
            OsWish(
                Family.FLATCAR,
                ("stable", "beta", "lts-2024"),
                (Architecture.AMD64, Architecture.ARM64),
                newest=2,
                tag=TAG,
                mirror="https://mirror.example/flatcar",
            ),
            OsWish(
                Family.DEBIAN,
                ("bookworm", "bookworm-security"),
                kernels=("6.1.0-50-amd64",),
                tag=KERNEL_TAG,
            ),
        ),
        drivers=(
            DriverWish(
                DriverSource(
                    "535.309.01",
                    Flavour.PROPRIETARY,
                    SourceKind.RUN,
                    "tesla",
                    "https://example.invalid/NVIDIA.run",
                    SHA,
                    graphics=True,
                ),
                (Family.FLATCAR,),
            ),
            DriverWish(
                DriverSource("535.261.03", Flavour.OPEN, SourceKind.DEBIAN, location="bookworm"),
                tuple(Family),
            ),
        ),
    )


def test_the_fabric_manager() -> None:
    text = f'fabric-manager = "fabricmanager.tar.xz"\nfabric-manager-sha256 = "{SHA}"\n'
    (wish,) = recipe.load("recipe.toml", TOP + FLATCAR + RUN + text).drivers
    assert (wish.source.fabric_manager, wish.source.fabric_manager_sha256) == ("fabricmanager.tar.xz", SHA)


def test_what_is_not_said_has_its_default() -> None:
    made = recipe.load("recipe.toml", TOP + FLATCAR + DEBIAN + RUN)
    assert (made.developers, made.base, made.connections, made.key) == ("", "", 8, "")
    flatcar, debian = made.systems
    assert (flatcar.newest, flatcar.architectures, flatcar.tag) == (1, (Architecture.AMD64,), TAG)
    assert debian.tag == KERNEL_TAG
    assert made.drivers[0].families == tuple(Family)


FAULTS = [
    pytest.param(
        "", ["repository: expected a value", "os: expected at least one [[os]]", "driver: "], id="nothing"
    ),
    pytest.param("[[os", ["not TOML"], id="no TOML"),
    pytest.param(
        TOP.replace("registry.example", "https://registry.example") + FLATCAR + RUN,
        ["recipe.toml:1: repository: expected an image name"],
        id="a scheme",
    ),
    pytest.param(
        "conections = 4\n" + TOP + FLATCAR + RUN,
        ["conections: unknown key (did you mean connections?)"],
        id="typo",
    ),
    pytest.param(
        "connections = 0\n" + TOP + FLATCAR + RUN, ["connections: expected a whole number"], id="none"
    ),
    pytest.param(
        TOP + FLATCAR.replace("flatcar", "flatcra") + RUN,
        ["recipe.toml:3: os.1.family: ", "did you mean 'flatcar'?"],
        id="family",
    ),
    pytest.param(
        TOP + FLATCAR.replace("stable", "stabel") + RUN,
        ["recipe.toml:4: os.1.channels: expected an array"],
        id="channel",
    ),
    pytest.param(
        TOP + FLATCAR.replace('["stable"]', '"stable"') + RUN,
        ["os.1.channels: ", "write ['stable']"],
        id="no array",
    ),
    pytest.param(
        TOP + FLATCAR.replace("channels", "suites") + RUN,
        ["os.1.suites: expected nothing", "os.1.channels: expected a value"],
        id="suites of Flatcar",
    ),
    pytest.param(
        TOP + FLATCAR + DEBIAN.replace("flavours", "flavors") + RUN,
        [
            "recipe.toml:8: os.2.flavors: unknown key (did you mean flavours?)",
            "os.2: expected kernels or flavours",
        ],
        id="the second system",
    ),
    pytest.param(
        TOP + DEBIAN + 'kernels = ["6.1.0-50-amd64"]\n' + RUN,
        ["os.1: expected kernels or flavours"],
        id="both",
    ),
    pytest.param(
        TOP + FLATCAR + 'architectures = ["x86_64"]\n' + RUN,
        ["os.1.architectures: ", "'x86_64'"],
        id="architecture",
    ),
    pytest.param(
        TOP + FLATCAR + "newest = true\n" + RUN, ["os.1.newest: expected a whole number"], id="newest"
    ),
    pytest.param(TOP + FLATCAR + 'mirror = "ftp://x"\n' + RUN, ["os.1.mirror: expected a URL"], id="mirror"),
    pytest.param(
        TOP + FLATCAR + 'tag = "{os}"\n' + RUN,
        ["os.1.tag: expected {driver} in the tag"],
        id="tag without driver",
    ),
    pytest.param(
        TOP + FLATCAR + 'tag = "{driver}"\n' + RUN,
        ["os.1.tag: expected {os} or {kernel}"],
        id="tag without release",
    ),
    pytest.param(
        TOP + FLATCAR + 'tag = "{os}-{driver}"\n' + RUN + RUN + 'product = "grid"\n',
        ["os.1.tag: expected {-product} in the tag"],
        id="tag without product",
    ),
    pytest.param(TOP + FLATCAR + RUN + RUN, ["driver.2: expected each driver once"], id="a driver twice"),
    pytest.param(
        TOP + FLATCAR + RUN.replace(f'sha256 = "{SHA}"\n', ""),
        ["driver.1.sha256: expected a value"],
        id="no sha256",
    ),
    pytest.param(
        TOP + FLATCAR + RUN.replace(SHA, SHA.upper()),
        ["recipe.toml:10: driver.1.sha256: expected a sha256"],
        id="sha256",
    ),
    pytest.param(
        TOP + FLATCAR + RUN + 'fabric-manager = "fabricmanager.tar.xz"\n',
        ["driver.1.fabric-manager-sha256: expected a value"],
        id="no sha256 of the fabric manager",
    ),
    pytest.param(
        TOP + FLATCAR + RUN.replace('"run"', '"debian"'),
        ["driver.1.sha256: expected nothing: Debian's archive is signed"],
        id="sha256 of Debian",
    ),
    pytest.param(
        TOP + FLATCAR + RUN + 'families = ["debian"]\n',
        ["driver.1.families: expected a family"],
        id="for nobody",
    ),
    pytest.param(
        TOP + FLATCAR + RUN.replace("535.309.01", "535 309"),
        ["driver.1.version: expected a driver version"],
        id="version",
    ),
    pytest.param(
        TOP + FLATCAR + FLATCAR.replace("flatcar", "coreos") + RUN,
        ["os.2.channels: expected channels of one family, found 'stable' of flatcar too"],
        id="one channel of two families",
    ),
    pytest.param(TOP + FLATCAR + RUN + "[sign]\n", ["sign.key: expected a value"], id="signing without key"),
    pytest.param(TOP + "os = 1\n" + RUN, ["os: expected an array of tables"], id="no tables"),
    pytest.param(TOP + "os = [1]\n" + RUN, ["os.1: expected a table, found the number 1"], id="a number"),
]


@pytest.mark.parametrize(("text", "words"), FAULTS)
def test_each_fault_is_told(text: str, words: list[str]) -> None:
    made, faults = recipe.read("recipe.toml", text)
    assert made is None
    told = "\n".join(str(fault) for fault in faults)
    assert [word for word in words if word not in told] == [], told


def test_all_faults_are_told_at_once() -> None:
    wrong = (
        TOP + FLATCAR.replace("stable", "x") + "newest = 0\n" + RUN.replace("open", "opne") + "graphic = 1\n"
    )
    with pytest.raises(Permanent) as caught:
        recipe.load("recipe.toml", wrong)
    assert caught.value.code is Code.RECIPE_INVALID
    assert "faults found: 3" in caught.value.remedy
    for key in ("os.1.channels", "os.1.newest", "driver.1.graphic"):
        assert key in caught.value.sentence
