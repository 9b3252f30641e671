# SPDX-License-Identifier: Apache-2.0
"""The configuration: what is taken, what is not, and what a person is told about it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns.model import EngineKind, Exposure, Signatures
from nvidiad.thought import config
from nvidiad.thought.config import load
from nvidiad.thought.settings import (
    Daemon,
    Driver,
    Engine,
    Image,
    Install,
    Kubernetes,
    Settings,
    Trust,
    Units,
)

# Tables whose keys are free.
FREE = {"engine.mirrors.registry.example", "driver.parameters.nvidia-uvm", "trust.pins.r.example/n:1-2"}

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = CHECKOUT / "units/nvidiad/nvidiad.toml"
DOCUMENT = CHECKOUT / "docs/configuration.md"

FULL = """
[driver]
version = "550.163.01"
product = "grid"
modules = ["nvidia", "nvidia-uvm"]
host-modules = []
[driver.parameters]
nvidia-uvm = ["uvm_disable_hmm=1"]
[image]
repository = "registry.example:5000/gpu/nvidia-driver"
tag = "{kernel}-{driver}"
auth-file = "/etc/nvidiad/auth.json"
connect-timeout = 5
stall-timeout = 7.5
total-timeout = 600
[trust]
keys = ["/etc/nvidiad/keys/a.pem", "/etc/nvidiad/keys/b.pem"]
policy = "prefer"
repository = "registry.example/signatures"
[trust.pins]
"r.example/n:1-2" = "sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"
[install]
root = "/var/lib/nvidiad/root/"
exposure = "overlay"
[units]
gated = ["kubelet.service", "vllm@0.service", "gpu.target"]
when-missing = "start"
[engine]
socket = "/var/run/docker.sock"
kind = "registry"
mirrors = { "registry.example" = ["https://mirror.example/copy", "http://10.0.0.5:5000"] }
[kubernetes]
nfd-file = "/etc/nfd/features.d/nvidiad"
[daemon]
poll = 60
retry-initial = 2
retry-maximum = 30
"""


def sentences(text: str) -> list[str]:
    return [str(fault) for fault in load([("f", text)])[1]]


def one(text: str) -> str:
    (sentence,) = sentences(text)
    return sentence


# ------------------------------------------------------------------------------------- what is taken


def test_nothing_configured_is_no_fault() -> None:
    settings, faults = load([])
    assert settings == Settings()
    assert faults == ()
    assert not settings.configured
    assert settings.missing == ("driver.version", "image.repository")
    assert load([("f", "[units]\ngated = []\n[daemon]\npoll = 60\n"), ("g", "")])[1] == ()


def test_defaults() -> None:
    settings = Settings()
    assert settings.driver.modules == ("nvidia", "nvidia-uvm", "nvidia-modeset")
    assert settings.driver.parameters == {"nvidia": ("NVreg_ModifyDeviceFiles=0",)}
    assert settings.image.tag == "{os}-{driver}{-product}"
    assert settings.install == Install(PurePosixPath("/opt"), Exposure.AUTO)
    assert settings.units == Units(("kubelet.service",), hold=True)


def test_every_key() -> None:
    settings, faults = load([("f", FULL)])
    assert faults == ()
    assert settings.configured
    assert settings == Settings(
        driver=Driver(
            version="550.163.01",
            product="grid",
            modules=("nvidia", "nvidia-uvm"),
            host_modules=(),
            parameters={"nvidia": ("NVreg_ModifyDeviceFiles=0",), "nvidia_uvm": ("uvm_disable_hmm=1",)},
        ),
        image=Image(
            repository="registry.example:5000/gpu/nvidia-driver",
            tag="{kernel}-{driver}",
            auth_file=PurePosixPath("/etc/nvidiad/auth.json"),
            connect_timeout=5.0,
            stall_timeout=7.5,
            total_timeout=600.0,
        ),
        trust=Trust(
            policy=Signatures.PREFER,
            keys=(PurePosixPath("/etc/nvidiad/keys/a.pem"), PurePosixPath("/etc/nvidiad/keys/b.pem")),
            repository="registry.example/signatures",
            pins={
                "r.example/n:1-2": "sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"
            },
        ),
        install=Install(PurePosixPath("/var/lib/nvidiad/root"), Exposure.OVERLAY),
        units=Units(("kubelet.service", "vllm@0.service", "gpu.target"), hold=False),
        engine=Engine(
            PurePosixPath("/var/run/docker.sock"),
            EngineKind.REGISTRY,
            MappingProxyType({"registry.example": ("https://mirror.example/copy", "http://10.0.0.5:5000")}),
        ),
        kubernetes=Kubernetes(PurePosixPath("/etc/nfd/features.d/nvidiad")),
        daemon=Daemon(60.0, 2.0, 30.0),
    )


def test_settings_do_not_change() -> None:
    settings, _ = load([("f", FULL)])
    with pytest.raises(TypeError):
        settings.driver.parameters["nvidia"] = ()  # type: ignore[index]
    with pytest.raises(AttributeError):
        settings.driver.version = "1"  # type: ignore[misc]
    assert load([])[0].driver.parameters == {"nvidia": ("NVreg_ModifyDeviceFiles=0",)}


def test_later_fragments_override_keys_and_merge_tables() -> None:
    settings, faults = load(
        [
            (
                "a",
                '[driver]\nversion = "1"\nmodules = ["nvidia"]\nparameters = {nvidia = ["a=1"], x = ["b"]}',
            ),
            ("b", 'driver.version = "2"\nimage = { repository = "r/n" }\n'),
            ("c", "[driver]\nparameters = { nvidia = [] }\n[daemon]\npoll = 10\n"),
        ]
    )
    assert faults == ()
    assert settings.driver.version == "2"
    assert settings.driver.modules == ("nvidia",)
    assert settings.driver.parameters == {"nvidia": (), "x": ("b",)}
    assert settings.image.repository == "r/n"
    assert settings.daemon == Daemon(poll=10.0)


def test_a_module_is_one_however_it_is_written() -> None:
    settings, faults = load(
        [
            ("a", "[driver.parameters]\nnvidia-uvm = ['a=1']"),
            ("b", "[driver.parameters]\nnvidia_uvm = ['b=1']"),
        ]
    )
    assert faults == ()
    assert settings.driver.parameters["nvidia_uvm"] == ("b=1",)


def test_the_example_is_valid_and_names_every_key() -> None:
    text = EXAMPLE.read_text()
    assert load([("f", text)]) == (Settings(), ())
    everything = re.sub(r"^#(?=\[|[a-z-]+ = )", "", text, flags=re.MULTILINE)
    settings, faults = load([("f", everything)])
    assert faults == ()
    assert settings.configured
    assert leaves(tomllib.loads(everything)) >= leaves(tomllib.loads(FULL)) - FREE


def leaves(document: dict[str, Any], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for key, value in document.items():
        names |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return names


def test_the_examples_of_the_document_are_valid() -> None:
    fences = re.findall(r"^```toml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(fences) > 3
    seen: set[str] = set()
    for fence in fences:
        needed = [("f", '[driver]\nversion = "1"\n[image]\nrepository = "r"\n'), ("g", fence)]
        assert load(needed)[1] == ()
        seen |= leaves(tomllib.loads(fence))
    assert seen >= leaves(tomllib.loads(FULL)) - FREE


def test_the_faults_of_the_document_are_those_that_are_found() -> None:
    (block,) = re.findall(r"^```console\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    text = (CHECKOUT / "tests/data/config/faults.toml").read_text()
    faults = [str(fault) for fault in load([("/etc/nvidiad/nvidiad.toml", text)])[1]]
    assert block.splitlines() == faults


def test_the_import_is_cheap() -> None:
    program = "import sys, nvidiad.thought.config; print('difflib' in sys.modules, 'pathlib' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert result.stdout.split() == ["False", "True"]


# --------------------------------------------------------------------------------- what is not taken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "[driver]\nversion = 535.309\n",
            "f:2: driver.version: expected a driver version such as '535.309.01', found the number 535.309 "
            "(put it in quotes)",
            id="number for a version",
        ),
        pytest.param(
            "[driver]\nversion = '../535'\n",
            "f:2: driver.version: expected a driver version such as '535.309.01', found '../535'",
            id="path for a version",
        ),
        pytest.param(
            "[driver]\nversion = ''\n",
            "f:2: driver.version: expected a driver version such as '535.309.01', found an empty string",
            id="empty version",
        ),
        pytest.param(
            "[driver]\nproduct = 'a b'\n",
            "f:2: driver.product: expected a word such as 'grid', or an empty string, found 'a b'",
            id="product of two words",
        ),
        pytest.param(
            "[driver]\nmodules = 'nvidia'\n",
            "f:2: driver.modules: expected an array of module names such as ['nvidia', 'nvidia-uvm'], "
            "found 'nvidia' (write ['nvidia'])",
            id="string for an array",
        ),
        pytest.param(
            "[driver]\nmodules = []\n",
            "f:2: driver.modules: expected at least one module, found an empty array",
            id="no module",
        ),
        pytest.param(
            "[driver]\nmodules = [\n  'nvidia',\n  'nvidia',\n]\n",
            "f:2: driver.modules: expected each entry once, found 'nvidia' again",
            id="module twice",
        ),
        pytest.param(
            "[driver]\nhost-modules = ['drm', 3]\n",
            "f:2: driver.host-modules: expected an array of module names such as ['nvidia', 'nvidia-uvm'], "
            "found the number 3",
            id="number among strings",
        ),
        pytest.param(
            "driver.parameters = ['a']\n",
            "f:1: driver.parameters: expected a table: write [driver.parameters] on a line of its own",
            id="parameters that are no table",
        ),
        pytest.param(
            "[driver.parameters]\nnvidia = ['a b=1']\n",
            "f:2: driver.parameters.nvidia: expected an array of parameters such as "
            "['NVreg_ModifyDeviceFiles=0'], found 'a b=1'",
            id="parameter with a space",
        ),
        pytest.param(
            "[driver.parameters]\nnvidia-uvm = []\nnvidia_uvm = []\n",
            "f:3: driver.parameters.nvidia_uvm: expected each module once, found 'nvidia_uvm' again",
            id="one module by two names",
        ),
        pytest.param(
            "[image]\nrepository = 'https://registry.example/x'\n",
            "f:2: image.repository: expected an image name such as 'registry.example/nvidia-driver', "
            "found 'https://registry.example/x' (without a scheme)",
            id="scheme",
        ),
        pytest.param(
            "[image]\nrepository = 'registry.example/x:1'\n",
            "f:2: image.repository: expected an image name such as 'registry.example/nvidia-driver', "
            "found 'registry.example/x:1' (without a tag: that is image.tag)",
            id="tag in the repository",
        ),
        pytest.param(
            "[image]\nrepository = 'r/x@sha256:00'\n",
            "f:2: image.repository: expected an image name such as 'registry.example/nvidia-driver', "
            "found 'r/x@sha256:00' (without a digest: nvidiad asks the registry for it)",
            id="digest in the repository",
        ),
        pytest.param(
            "[image]\nrepository = 'r.example/Team/x'\n",
            "f:2: image.repository: expected an image name such as 'registry.example/nvidia-driver', "
            "found 'r.example/Team/x' (in lower case)",
            id="upper case",
        ),
        pytest.param(
            "[image]\ntag = '{os}-{drivr}'\n",
            "f:2: image.tag: expected a tag with fields such as '{os}-{driver}{-product}', found '{drivr}' "
            "(did you mean {driver}?)",
            id="misspelt field",
        ),
        pytest.param(
            "[image]\ntag = '{zzz}'\n",
            "f:2: image.tag: expected a tag with fields such as '{os}-{driver}{-product}', found '{zzz}' "
            "(there are {os}, {driver}, {kernel}, {product}, {-product})",
            id="unknown field",
        ),
        pytest.param(
            "[image]\ntag = '{os'\n",
            "f:2: image.tag: expected a tag with fields such as '{os}-{driver}{-product}', found '{os'",
            id="brace left open",
        ),
        pytest.param(
            "[image]\nconnect-timeout = '10'\n",
            "f:2: image.connect-timeout: expected a number of seconds from 1 to 300, found '10' "
            "(without quotes)",
            id="string for a number",
        ),
        pytest.param(
            "[image]\nconnect-timeout = true\n",
            "f:2: image.connect-timeout: expected a number of seconds from 1 to 300, found the boolean true",
            id="boolean for a number",
        ),
        pytest.param(
            "[image]\nstall-timeout = nan\n",
            "f:2: image.stall-timeout: expected a number of seconds from 1 to 3600, found the number nan",
            id="not a number",
        ),
        pytest.param(
            "[daemon]\npoll = 0\n",
            "f:2: daemon.poll: expected a number of seconds from 10 to 86400, found the number 0",
            id="zero",
        ),
        pytest.param(
            "[daemon]\npoll = 10000000000000000000000000000\n",
            "f:2: daemon.poll: expected a number of seconds from 10 to 86400, found a very large number",
            id="huge",
        ),
        pytest.param(
            "[install]\nroot = 'opt'\n",
            "f:2: install.root: expected an absolute path, found 'opt'",
            id="relative",
        ),
        pytest.param(
            "[install]\nroot = '/opt/../etc'\n",
            "f:2: install.root: expected an absolute path, found '/opt/../etc'",
            id="dots",
        ),
        pytest.param(
            "[install]\nroot = '/opt/a:b'\n",
            "f:2: install.root: expected a path of letters, digits and ._+@-, found '/opt/a:b'",
            id="colon, which overlay would take for a separator",
        ),
        pytest.param(
            "[install]\nexposure = 'ldconfg'\n",
            "f:2: install.exposure: expected 'overlay' or 'ldconfig' or 'auto', found 'ldconfg' "
            "(did you mean 'ldconfig'?)",
            id="misspelt choice",
        ),
        pytest.param(
            "[units]\ngated = ['kubelet']\n",
            "f:2: units.gated: expected an array of unit names such as ['kubelet.service'], found 'kubelet' "
            "(did you mean 'kubelet.service'?)",
            id="unit without a kind",
        ),
        pytest.param(
            "[units]\ngated = ['vllm@.service']\n",
            "f:2: units.gated: expected an array of unit names such as ['kubelet.service'], "
            "found 'vllm@.service' (a template: name its instances)",
            id="template",
        ),
        pytest.param(
            "[units]\ngated = ['../x.service']\n",
            "f:2: units.gated: expected an array of unit names such as ['kubelet.service'], "
            "found '../x.service'",
            id="unit with a slash",
        ),
        pytest.param(
            "[units]\ngated = ['nvidia.service']\n",
            "f:2: units.gated: expected units that wait for the driver, found 'nvidia.service', "
            "which brings it",
            id="our own unit",
        ),
        pytest.param(
            "[units]\ngated = ['docker.service']\n",
            "f:2: units.gated: expected units that wait for the driver, found 'docker.service', "
            "which nvidiad needs",
            id="a unit that nvidiad waits for",
        ),
        pytest.param(
            "[units]\nwhen-missing = true\n",
            "f:2: units.when-missing: expected 'hold' or 'start', found the boolean true",
            id="boolean for a word",
        ),
        pytest.param(
            "[engine]\nkind = 'podman'\n",
            "f:2: engine.kind: expected 'auto' or 'docker' or 'registry', found 'podman'",
            id="unknown engine",
        ),
        pytest.param(
            "[engine.mirrors]\n'registry.example' = ['mirror.example']\n",
            "f:1: engine.mirrors: expected a URL such as 'https://mirror.example', found 'mirror.example' "
            "(with https://, or http:// where it has no TLS)",
            id="mirror without a scheme",
        ),
        pytest.param(
            "[engine]\nmirrors = { registry = ['https://mirror.example'] }\n",
            "f:2: engine.mirrors: expected the name of a registry such as 'registry.example:5000', "
            "found 'registry'",
            id="mirror of nothing",
        ),
        pytest.param(
            "[engine]\nsocket = 'unix:///run/docker.sock'\n",
            "f:2: engine.socket: expected an absolute path, found 'unix:///run/docker.sock' "
            "(without 'unix:')",
            id="address for a path",
        ),
        pytest.param(
            "[driver]\nversion = 1979-05-27\n",
            "f:2: driver.version: expected a driver version such as '535.309.01', found a date or time",
            id="date",
        ),
        pytest.param(
            "driver = 3\n", "f:1: driver: expected a table: write [driver] on a line of its own", id="value"
        ),
        pytest.param(
            "[drivers]\n", "f:1: drivers: unknown table (did you mean driver?)", id="misspelt table"
        ),
        pytest.param(
            "[zzz]\n",
            "f:1: zzz: unknown table (there are driver, image, trust, cuda, cdi, install, units, "
            "stage, reboot, retention, engine, kubernetes, daemon)",
            id="unknown table",
        ),
        pytest.param(
            "poll = 3\n", "f:1: poll: unknown key (did you mean daemon.poll?)", id="key without its table"
        ),
        pytest.param(
            "[image]\n# version = 1\n'auth_file' = '/x'\n",
            "f:3: image.auth_file: unknown key (did you mean image.auth-file?)",
            id="underscore for a dash",
        ),
        pytest.param(
            "[driver]\nparameter = {}\n",
            "f:2: driver.parameter: unknown key (did you mean driver.parameters?)",
            id="misspelt table in a table",
        ),
        pytest.param(
            "[units]\npoll = 30\n",
            "f:2: units.poll: unknown key (did you mean daemon.poll?)",
            id="the wrong table",
        ),
        pytest.param(
            "[units]\nqqq = 30\n",
            "f:2: units.qqq: unknown key (there are gated, when-missing)",
            id="no idea",
        ),
        pytest.param(
            "[trust]\npolicy = 'require'\n",
            "f:2: trust.keys: expected at least one file, as trust.policy is 'require', found nothing",
            id="nobody to trust",
        ),
        pytest.param(
            "[trust]\nkeys = []\npolicy = 'prefer'\n",
            "f:3: trust.keys: expected at least one file, as trust.policy is 'prefer', found nothing",
            id="nobody to prefer",
        ),
        pytest.param(
            "[trust]\nkeys = '/a'\npolicy = 'require'\n",
            "f:2: trust.keys: expected an array of files such as ['/etc/nvidiad/keys/images.pem'], "
            "found '/a' (write ['/a'])",
            id="one key",
        ),
        pytest.param(
            "[trust]\npolicy = 'required'\nkeys = ['/a']\n",
            "f:2: trust.policy: expected 'require' or 'prefer' or 'off', found 'required' "
            "(did you mean 'require'?)",
            id="a word that is none",
        ),
        pytest.param(
            "[trust]\npins = {'r.example/n' = 'sha256:00'}\n",
            "f:2: trust.pins: expected an image name with its tag, found 'r.example/n'",
            id="a pin without a tag",
        ),
        pytest.param(
            "[trust]\npins = {'r.example/n:1' = 'sha256:00'}\n",
            "f:2: trust.pins: expected a digest such as 'sha256:…' with 64 hexadecimal digits for "
            "'r.example/n:1', found 'sha256:00'",
            id="a pin without a digest",
        ),
        pytest.param(
            "[daemon]\nretry-initial = 700\n",
            "f:2: daemon.retry-initial: expected retry-maximum (600) to be no less than retry-initial (700)",
            id="upside down",
        ),
    ],
)
def test_fault(text: str, expected: str) -> None:
    assert one(text) == expected


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[driver]\nversion = 'a\nb'\n", "f:2:"),
        ("x = [1,\ny =", "f:2:1: "),
        ('x = """', "f:1: "),
        ("a=1\na=2", "f:2:"),
    ],
)
def test_fault_of_syntax(text: str, place: str) -> None:
    # the words are those of Python's parser, and change with it
    sentence = one(text)
    assert sentence.startswith(place)
    assert ": not TOML: " in sentence
    assert "(at " not in sentence


def test_all_faults_at_once_each_with_its_place() -> None:
    text = FULL.replace('"grid"', "3").replace('"/var/lib', '"var/lib').replace("poll = 60", "pol = 60")
    settings, faults = load(
        [("a.toml", text), ("b.toml", "x = [1,\ny ="), ("c.toml", '[units]\ngated = "x"\n')]
    )
    assert [(fault.file, fault.line, fault.column, fault.key) for fault in faults] == [
        ("a.toml", 4, None, "driver.product"),
        ("a.toml", 23, None, "install.root"),
        ("a.toml", 35, None, "daemon.pol"),
        ("b.toml", 2, 1, ""),
        ("c.toml", 2, None, "units.gated"),
    ]
    # what is not at fault is there
    assert settings.driver.version == "550.163.01"
    assert settings.install == Install(exposure=Exposure.OVERLAY)


def test_each_entry_of_an_array_that_is_at_fault() -> None:
    text = (
        "[driver]\nmodules = ['a.ko', 'b', 'b', 3]\n"
        "[driver.parameters]\nx = ['', 'a b']\n[units]\ngated = ['x', 'y']\n"
    )
    assert [sentence.split(":")[1:3] for sentence in sentences(text)] == [
        *[["2", " driver.modules"]] * 3,
        *[["4", " driver.parameters.x"]] * 2,
        *[["6", " units.gated"]] * 2,
    ]


def test_one_required_key_without_the_other() -> None:
    assert one('[driver]\nversion = "1"\n') == "f: image.repository: expected an image name, found nothing"
    settings, faults = load([("f", '[image]\nrepository = "r"\n'), ("g", "")])
    assert [str(fault) for fault in faults] == [
        "f: driver.version: expected a driver version, found nothing"
    ]
    assert settings.missing == ("driver.version",)
    # one at fault is not missing as well
    assert len(sentences('[driver]\nversion = "1"\n[image]\nrepository = "R"\n')) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("[ driver ]\nzz = 1\n", 2, id="spaces in the header"),
        pytest.param('["driver"]\n"zz" = 1\n', 2, id="quoted"),
        pytest.param("driver . zz = 1\n", 1, id="dotted"),
        pytest.param("driver = { zz = 1 }\n", 1, id="inline"),
        pytest.param("[driver]\nhost-modules = [\n'zz',\n]\nzz = 1\n", 5, id="behind an array over lines"),
        pytest.param(
            '[driver]\nproduct = """\\\nzz = 1\\\n"""\nzz = 1\n', 5, id="behind a string over lines"
        ),
        pytest.param("[driver]\r\nproduct = ''\r\nzz = 1\r\n", 3, id="line ends of Windows"),
        pytest.param("[driver] # [image]\nproduct = '' # '[['\nzz = 1\n", 3, id="comments"),
    ],
)
def test_line(text: str, line: int) -> None:
    (fault,) = [fault for fault in load([("f", text)])[1] if fault.key == "driver.zz"]
    assert fault.line == line


@pytest.mark.parametrize(
    "name",
    [
        *("nvidia-driver", "gpu/nvidia-driver", "registry.example/nvidia", "localhost/x", "Registry/x"),
        *("127.0.0.1:5000/x", "[::1]:5000/x/y", "[fd00::1]/x", "r:5000/a.b/c__d/e---f"),
    ],
)
def test_repository(name: str) -> None:
    settings, _ = load([("f", f'[image]\nrepository = "{name}"\n')])
    assert settings.image.repository == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "/",
            "x/",
            "/x",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "r:port/x",
            "r:99999/x",
            "r.example:/x",
            "a b",
            "x\u00e9",
        ),
        *(
            "[::1",
            "[zz]:1/x",
            ".example/x",
            "-r.example/x",
            "r.example/" + "x" * 250,
            "registry.example",
            "a_____b",
        ),
    ],
)
def test_no_repository(name: str) -> None:
    settings, faults = load([("f", f'[image]\nrepository = "{name}"\n')])
    assert (settings.image.repository == name and name == "registry.example") or faults


JUNK = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["nvidia", "/opt"])
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
PATHS = st.sampled_from(
    [f"{section}.{key}" for section, keys in config._KEYS.items() for key in [*keys, "zz"]]
    + ["driver.parameters.nvidia", "driver.parameters", "driver", "zz"]
)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else repr(value)


@given(st.lists(st.dictionaries(PATHS, JUNK, max_size=4), max_size=3))
def test_any_value_is_taken_or_named(documents: list[dict[str, Any]]) -> None:
    fragments = [
        (f"f{number}", "".join(f"{key} = {toml(value)}\n" for key, value in document.items()))
        for number, document in enumerate(documents)
    ]
    settings, faults = load(fragments)
    assert settings.daemon.retry_initial <= settings.daemon.retry_maximum
    assert settings.install.root.is_absolute()
    for fault in faults:
        assert fault.sentence
        assert "\n" not in str(fault)


@given(st.one_of(st.text(), st.text(alphabet="[]{}=.,'\"# \nab1\\")))
def test_any_text_is_taken_or_refused(text: str) -> None:
    _, faults = load([("f", text)])
    assert all(fault.file == "f" for fault in faults)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 100_000, "a." * 1000 + "a = 1", '"a\\nb" = 1']
)
def test_what_nobody_writes_is_a_fault(text: str) -> None:
    assert "\n" not in one(text)
