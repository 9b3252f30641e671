# SPDX-License-Identifier: Apache-2.0
"""What is shipped: locked to the byte, in a bill of materials, and without known vulnerabilities."""

from __future__ import annotations

import datetime
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

from tools import audit, locks, sbom

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parents[2]
REQUIREMENTS = CHECKOUT / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.txt"))
PIP_AUDIT = CHECKOUT / ".venv/tools/bin/pip-audit"
TODAY = datetime.date(2026, 11, 29)
HASH = "--hash=sha256:" + "0" * 64


# -- the locks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_line_says_exactly_what_is_taken(lock: Path) -> None:
    found = list(locks.read(lock))
    assert len(found) > 2
    names = [sbom.normal(one.name) for one in found]
    assert len(names) == len(set(names))
    # Whose index that is, every machine knows by itself.
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", lock.read_text())


def test_the_lock_is_what_setup_cfg_allows() -> None:
    locked = {sbom.normal(one.name): one for one in locks.read(REQUIREMENTS / "runtime.txt")}
    wanted = [Requirement(line) for line in sbom.requirements()]
    assert {"pystemd", "docker", "pyudev", "structlog", "urllib3", "cryptography"} <= {
        sbom.normal(one.name) for one in wanted
    }
    for one in wanted:
        found = locked.get(sbom.normal(one.name))
        assert found, f"{one.name} is not locked: make lock"
        assert one.specifier.contains(found.version), f"{one} is locked as {found.version}: make lock"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("docker==7.2.0", id="no hash"),
        pytest.param(f"docker>=7.2.0 {HASH}", id="no version"),
        pytest.param("docker==7.2.0 --hash=md5:" + "0" * 32, id="a weak hash"),
        pytest.param("docker==7.2.0 --hash=sha256:0", id="half a hash"),
        pytest.param(f"docker==7.2.0 {HASH} --hash=sha512:00", id="another hash beside it"),
        pytest.param(f"docker @ file:///docker.whl {HASH}", id="a file"),
        pytest.param("--extra-index-url=file:///x", id="an index"),
    ],
)
def test_a_line_that_leaves_something_open_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(f"# make lock\nidna==3.20 \\\n    {HASH}\n{line}\n")
    with pytest.raises(ValueError, match="does not say exactly"):
        list(locks.read(path))


def test_make_install_takes_nothing_else() -> None:
    recipe = (CHECKOUT / "Makefile").read_text().partition("\ninstall:")[2].partition("\nclean:")[0]
    commands = [line for line in recipe.replace("\\\n", "").splitlines() if "/pip " in line]
    assert len(commands) == 4
    for command in commands:
        assert "--no-deps" in command, command
        # Named by a lock, this checkout itself, or made of both a moment before.
        ours = command.endswith(" .") or "--no-index" in command
        assert "--require-hashes" in command or ours, command
        # An isolated build would fetch what no lock names.
        assert "pip install" in command or "--no-build-isolation" in command, command


# -- the bill of materials -----------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [{}, {"SOURCE_DATE_EPOCH": "1764374400"}], ids=["", "dated"])
def test_the_bill_is_valid_and_always_the_same(environment: dict[str, str]) -> None:
    text = sbom.bill(environment)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == sbom.bill(environment)
    said: dict[str, Any] = json.loads(text)
    assert said["metadata"].get("timestamp") == ("2025-11-29T00:00:00+00:00" if environment else None)
    runtime = list(locks.read(REQUIREMENTS / "runtime.txt"))
    required = [one for one in said["components"] if one["scope"] == "required"]
    assert [(one["name"], one["version"]) for one in required] == [
        (one.name, one.version) for one in runtime
    ]
    (needs,) = [one["dependsOn"] for one in said["dependencies"]]
    assert len(needs) == len(sbom.requirements())


# -- the audit -----------------------------------------------------------------------------------------


def said(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def urllib3(**more: Any) -> dict[str, Any]:
    vulnerability = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.26.5"], **more}
    return {"name": "urllib3", "version": "1.26.4", "vulns": [vulnerability]}


GOOD = {"name": "idna", "version": "3.20", "vulns": []}
# What pip-audit prints of an index that does not tell of vulnerabilities; it ends with 0 then.
UNASKED = {"name": "docker", "skip_reason": "Dependency not found on PyPI"}
PARDON = audit.Ignored("CVE-1", "urllib3", "nobody asks it for that", TODAY + datetime.timedelta(1))


@pytest.mark.parametrize(
    ("printed", "known", "status", "word"),
    [
        pytest.param(said(GOOD), [], audit.NONE, "no known vulnerabilities in 1", id="none"),
        pytest.param(said(GOOD, urllib3()), [], audit.VULNERABLE, "urllib3 1.26.4: PYSEC-1", id="one"),
        pytest.param(said(urllib3(), UNASKED), [], audit.VULNERABLE, "PYSEC-1", id="one, others unasked"),
        pytest.param(said(urllib3()), [PARDON], audit.NONE, "no known", id="ignored"),
        pytest.param(
            said(urllib3()),
            [audit.Ignored("CVE-1", "urllib3", "x", TODAY)],
            audit.VULNERABLE,
            "ignored until 2026-11-29 only",
            id="no longer ignored",
        ),
        pytest.param(
            said(urllib3()),
            [audit.Ignored("CVE-1", "docker", "x", PARDON.until)],
            audit.VULNERABLE,
            "PYSEC-1",
            id="ignored for another package",
        ),
        pytest.param(said(GOOD, UNASKED), [], audit.UNKNOWN, "1 of 2", id="the index does not tell"),
        pytest.param("", [], audit.UNKNOWN, "does not answer", id="offline"),
        pytest.param("Traceback", [], audit.UNKNOWN, "does not answer", id="it crashed"),
        pytest.param(said(), [], audit.UNKNOWN, "0 of 0", id="nothing was audited"),
    ],
)
def test_what_an_audit_means(printed: str, known: list[audit.Ignored], status: int, word: str) -> None:
    found, words = audit.judge(printed, known, TODAY)
    assert found == status
    assert word in words


@pytest.mark.parametrize(
    "more",
    [
        pytest.param('until = "2027-01-31"', id="no date"),
        pytest.param("until = 2027-01-31T00:00:00Z", id="a time"),
        pytest.param('until = 2027-01-31\nreason = " "', id="no reason"),
        pytest.param("", id="no end"),
    ],
)
def test_nothing_is_ignored_for_ever_or_without_a_reason(more: str) -> None:
    reason = "" if "reason" in more else 'reason = "r"\n'
    with pytest.raises(ValueError, match=r"id, package|is no date"):
        audit.ignored(f'[[ignored]]\nid = "A"\npackage = "p"\n{reason}{more}\n')


def test_the_list_of_what_is_ignored_can_be_read() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    for one in audit.ignored((REQUIREMENTS / "ignored.toml").read_text()):
        assert one.until > today, f"{one.identity} has been ignored for long enough: {one.reason}"


@contextmanager
def feed(vulnerable: str) -> Iterator[str]:
    """Something that knows one vulnerability, as OSV's API tells of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package = asked["package"]
            fixed = [{"type": "ECOSYSTEM", "events": [{"fixed": "99"}]}]
            found = {"id": "TEST-1", "summary": "bad", "affected": [{"package": package, "ranges": fixed}]}
            body = json.dumps({"vulns": [found]} if package["name"] == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(not PIP_AUDIT.exists(), reason="`make test` or `make audit` installs pip-audit")
@pytest.mark.parametrize(
    ("vulnerable", "status", "word"),
    [("urllib3", audit.VULNERABLE, "urllib3"), ("", audit.NONE, "no known vulnerabilities")],
    ids=["one", "none"],
)
def test_pip_audit_itself_says_so(vulnerable: str, status: int, word: str) -> None:
    with feed(vulnerable) as url:
        options = ["--vulnerability-service=osv", f"--osv-url={url}"]
        found, words = audit.audit(str(PIP_AUDIT), REQUIREMENTS / "runtime.txt", options)
    assert (found, word in words) == (status, True), words


@pytest.mark.skipif(not PIP_AUDIT.exists(), reason="`make test` or `make audit` installs pip-audit")
def test_nothing_that_is_shipped_has_a_known_vulnerability() -> None:
    status, words = audit.audit(str(PIP_AUDIT), REQUIREMENTS / "runtime.txt")
    if status == audit.UNKNOWN:
        pytest.skip(words)
    assert status == audit.NONE, words
