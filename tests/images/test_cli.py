# SPDX-License-Identifier: Apache-2.0
"""nvidiad-image as a person and a program use it: what it prints, and how it exits."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.image import cli
from nvidiad.nouns.errors import Code
from tests.images import smalldriver
from tests.images.mirror import Mirror
from tests.images.workshop import BASE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.images.workshop import Workshop

OLD, NEW, KERNEL = "4593.2.4", "4593.2.5", "6.12.102"


class Line:
    """A command line with the options that point it to the workshop."""

    def __init__(self, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._engine = [f"--engine={workshop.socket}", f"--temporary={tmp_path}"]
        self._capsys = capsys

    def run(self, verb: str, *words: str, engine: bool = True) -> tuple[int, str, str]:
        """The exit status, and what was printed on both streams."""
        status = cli.main([verb, *(self._engine if engine else []), *words])
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def json(self, verb: str, *words: str, engine: bool = True) -> Any:
        status, out, err = self.run(verb, "--json=short", *words, engine=engine)
        assert status == cli.OK, err
        return json.loads(out)


@pytest.fixture
def line(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(workshop, tmp_path, capsys)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    with Mirror(tmp_path / "mirror") as made:
        made.add_release("stable", OLD, kernel=KERNEL)
        made.add_release("stable", NEW, kernel=KERNEL)
        yield made


@pytest.fixture
def recipe(workshop: Workshop, mirror: Mirror, tmp_path: Path) -> Path:
    """Two releases, one small driver."""
    package = smalldriver.run_package(tmp_path)
    driver = smalldriver.source(package)
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'repository = "{workshop.registry}/cli/nvidia-driver"\nbase = "{BASE}"\n'
        f'[[os]]\nfamily = "flatcar"\nchannels = ["stable"]\nnewest = 2\nmirror = "{mirror.url}"\n'
        f'[[driver]]\nversion = "{smalldriver.VERSION}"\nflavour = "open"\nsource = "run"\n'
        f'location = "{package.name}"\nsha256 = "{driver.sha256}"\n'
    )
    return path


def test_releases(line: Line, mirror: Mirror) -> None:
    words = (f"--mirror={mirror.url}", "--channel=stable", "--newest=2")
    told = line.json("releases", *words, engine=False)
    assert [(each["version"], each["kernel"]) for each in told["releases"]] == [
        (NEW, f"{KERNEL}-flatcar"),
        (OLD, f"{KERNEL}-flatcar"),
    ]
    status, out, _ = line.run("releases", *words, engine=False)
    assert status == cli.OK
    assert re.search(rf"^stable +{re.escape(NEW)} +amd64 +{KERNEL}-flatcar ", out, re.MULTILINE)


def test_no_server_answers(line: Line) -> None:
    one = ("--mirror=http://127.0.0.1:1", "--channel=stable")
    status, out, err = line.run("releases", *one, engine=False)
    assert (status, out) == (cli.FAILED, "")
    assert f"[{Code.FEED_UNREACHABLE}]" in err and "Traceback" not in err


def test_the_matrix_says_what_is_missing(line: Line, recipe: Path) -> None:
    told = line.json("matrix", str(recipe))
    tags = [f"{version}-{smalldriver.VERSION}" for version in (NEW, OLD)]
    assert [(cell["tag"], cell["state"]) for cell in told["cells"]] == [(tag, "missing") for tag in tags]
    status, out, _ = line.run("matrix", str(recipe))
    assert status == cli.OK
    assert out.endswith("2 missing\n")


def test_what_fails_is_told_and_the_exit_status_says_it(line: Line, recipe: Path, mirror: Mirror) -> None:
    # The mirror has no disk images: no developer image can be made of them.
    status, out, _ = line.run("publish", str(recipe), f"--key={mirror.key}")
    assert status == cli.FAILED
    assert f"{NEW}-{smalldriver.VERSION}: failed ({Code.RELEASE_UNKNOWN}" in out
    assert out.endswith("2 missing\n")


def test_cuda_is_packed_and_proven(line: Line, workshop: Workshop, tmp_path: Path) -> None:
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "lib64").mkdir()
    (toolkit / "bin/nvcc").write_text("#!/bin/sh\n")
    (toolkit / "lib64/libcudart.so.12.4.1").write_bytes(b"stand-in")
    (toolkit / "lib64/libcudart.so.12").symlink_to("libcudart.so.12.4.1")
    words = (
        "--cuda-version=12.4.1",
        "--minimum-driver=525.60.13",
        "--repository=cli/cuda",
        f"--base={BASE}",
    )
    assert line.json("cuda", str(toolkit), *words) == {"schema": 1, "image": "cli/cuda:12.4.1"}
    labels = workshop.engine.labels("cli/cuda:12.4.1")
    assert labels["io.nvidiad.minimum-driver"] == "525.60.13"
    told = line.json("prove", "cli/cuda:12.4.1")
    assert told["proven"] and {check["name"] for check in told["checks"]} >= {"labels", "content"}
    workshop.engine.remove("cli/cuda:12.4.1")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        pytest.param(("prove", "nowhere/image:1"), cli.FAILED, f"[{Code.IMAGE_MISSING}]", id="no image"),
        pytest.param(
            ("cuda", "/nonexistent", "--cuda-version=12.4.1", "--minimum-driver=1.2", f"--base={BASE}"),
            cli.FAILED,
            f"[{Code.SOURCE_INVALID}]",
            id="no toolkit",
        ),
        pytest.param(
            ("matrix", "/nonexistent.toml"), cli.FAILED, f"[{Code.RECIPE_INVALID}]", id="no recipe"
        ),
        pytest.param(
            ("build", "1.2.3", "--driver=535.1.2"), cli.USAGE, "--location and --sha256", id="no package"
        ),
    ],
)
def test_refusals(line: Line, words: tuple[str, ...], status: int, said: str) -> None:
    found, out, err = line.run(*words)
    assert (found, out) == (status, "")
    assert said in err


def test_all_faults_of_a_recipe_at_once(line: Line, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('repositry = "x"\n[[os]]\nfamily = "flatcr"\n[[driver]]\nversion = "535"\n')
    status, _, err = line.run("publish", str(path))
    assert status == cli.FAILED
    for word in ("repositry", "flatcr", "flavour"):
        assert word in err


@pytest.mark.parametrize("words", [(), ("nonsense",), ("prove",), ("build", "1.2.3")])
def test_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert ended.value.code == cli.USAGE
    assert capsys.readouterr().err.startswith("usage: nvidiad-image")
