# SPDX-License-Identifier: Apache-2.0
"""The release script: what it refuses, that a dry run does nothing, that two runs make the same files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MAKEFILE = """\
bundle:
\tmkdir -p dist && date -u -d @$$SOURCE_DATE_EPOCH >dist/nvidiad-0.2.0-amd64.raw
deb:
\techo deb >dist/nvidiad_0.2.0_amd64.deb
site:
\tmkdir -p build/site/html && echo page >build/site/html/index.html
sbom:
\techo '{}' >nvidiad.cdx.json
"""
needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


class Project:
    """A repository that could be nvidiad's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, text in {
            "nvidiad/__init__.py": '__version__ = "0.2.0"\n',
            "NEWS.md": "# News\n\n## 0.2.0 (2026-12-01)\n\n* new\n\n## 0.1.0 (2026-11-01)\n",
            "Makefile": MAKEFILE,
            ".gitignore": "/build/\n/dist/\n",
        }.items():
            self.write(name, text)
        (path / "tools").mkdir()
        shutil.copy(CHECKOUT / "tools/release.sh", path / "tools")
        self.git("init", "-q", "-b", "main")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=n@example", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *who, *words],
            cwd=self.path,
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        )
        return done.stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "all")

    def release(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path / "tools/release.sh", *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment() | {"RELEASE_CI": "true"} | variables,
        )


def environment() -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_COMMITTER_NAME": "n",
        "GIT_COMMITTER_EMAIL": "n@example",
        "GIT_COMMITTER_DATE": "1796083200 +0000",
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(project: Project) -> None:
    before = sorted(project.path.rglob("*"))
    done = project.release("--dry-run", "0.2.0", RELEASE_CI="false")
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert told[0] == "+ false"
    assert told[1].startswith("+ make ") and told[1].endswith(" bundle deb site sbom")
    assert any("ssh-keygen -q -Y sign -n nvidiad-release" in line for line in told)
    assert told[-1].endswith("tag --sign --message=nvidiad 0.2.0 v0.2.0")
    assert sorted(project.path.rglob("*")) == before
    assert project.git("tag") == ""


@pytest.mark.parametrize(
    ("name", "text", "version", "why"),
    [
        ("new.txt", "x", "0.2.0", "the tree is not clean"),
        (
            "NEWS.md",
            "# News\n\n## 0.2.0 (unreleased)\n",
            "0.2.0",
            "first heading of NEWS.md is '## 0.2.0 (unrel",
        ),
        ("NEWS.md", "# News\n", "0.2.0", "the first heading of NEWS.md is ''"),
        ("nvidiad/__init__.py", '__version__ = "0.2.1"\n', "0.2.0", "says '0.2.1', not '0.2.0'"),
        ("Makefile", MAKEFILE.replace("deb:", "dab:"), "0.2.0", "the Makefile has no target 'deb'"),
        ("a", "x", "0.2", "'0.2' is not a version"),
    ],
    ids=["dirty", "unreleased", "no heading", "version", "target", "number"],
)
def test_what_is_not_ready_is_refused(
    project: Project, name: str, text: str, version: str, why: str
) -> None:
    project.write(name, text)
    if why != "the tree is not clean":
        project.commit()
    done = project.release("--dry-run", version)
    assert done.returncode == 1
    assert why in done.stderr
    assert "+ " not in done.stdout


def test_a_version_that_is_tagged_is_refused(project: Project) -> None:
    project.git("tag", "v0.2.0")
    assert "the tag 'v0.2.0' is there already" in project.release("--dry-run", "0.2.0").stderr


def test_nothing_is_released_without_a_key_and_on_red(project: Project, tmp_path: Path) -> None:
    done = project.release("0.2.0")
    assert (done.returncode, done.stderr) == (1, "release: RELEASE_KEY names no key to sign with\n")
    (tmp_path / "key").write_text("x")
    done = project.release("0.2.0", RELEASE_KEY=str(tmp_path / "key"), RELEASE_CI="test -f none")
    assert (done.returncode, done.stderr) == (1, "release: CI is red\n")
    assert not (project.path / "build").exists()


def test_wrong_usage(project: Project) -> None:
    assert project.release().returncode == 2


@needs_ssh
def test_a_release_is_summed_signed_tagged_and_the_same_again(project: Project, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], check=True)
    made = project.path / "build/release/0.2.0"
    contents = []
    for _ in range(2):
        done = project.release("0.2.0", RELEASE_KEY=str(key))
        assert done.returncode == 0, done.stdout + done.stderr
        contents.append({path.name: path.read_bytes() for path in made.iterdir()})
        assert "BEGIN SSH SIGNATURE" in project.git("cat-file", "tag", "v0.2.0")
        project.git("tag", "-d", "v0.2.0")
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "nvidiad-0.2.0-amd64.raw",
        "nvidiad_0.2.0_amd64.deb",
        "nvidiad-0.2.0-docs.tar.gz",
        "nvidiad-0.2.0.cdx.json",
        "nvidiad-0.2.0.tar.gz",
        "SHA256SUMS",
        "SHA256SUMS.sig",
    }
    assert b"2026" in contents[0]["nvidiad-0.2.0-amd64.raw"], "built at the time of the commit"
    # As docs/releasing.md tells users.
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f"release@nvidiad {key.with_suffix('.pub').read_text()}")
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(allowed),
        "-I",
        "release@nvidiad",
        "-n",
        "nvidiad-release",
    ]
    for sums, good in ((contents[0]["SHA256SUMS"], True), (b"0" + contents[0]["SHA256SUMS"][1:], False)):
        signature = str(made / "SHA256SUMS.sig")
        said = subprocess.run([*verify, "-s", signature], input=sums, capture_output=True, check=False)
        assert (said.returncode == 0) is good
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "--ignore-missing", "SHA256SUMS"], cwd=made, check=True
    )
