# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.audit PIP-AUDIT [OPTION...]`: has anything that is shipped a known vulnerability?

Exit status: 0 no, 1 yes, 77 where nobody could be asked. Options are pip-audit's.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
NONE, VULNERABLE, UNKNOWN = 0, 1, 77
_SECONDS = 120
_ANSWER = 15


@dataclass(frozen=True)
class Ignored:
    """A vulnerability that does no harm here, until a date on which somebody has to look again."""

    identity: str
    package: str
    reason: str
    until: datetime.date


def ignored(text: str) -> list[Ignored]:
    """The list of them; raises ValueError where one of them has no reason or no date."""
    found = []
    for each in tomllib.loads(text).get("ignored", []):
        if set(each) != {"id", "package", "reason", "until"} or not str(each["reason"]).strip():
            raise ValueError(f"an ignored vulnerability needs id, package, reason and until: {each}")
        if type(each["until"]) is not datetime.date:
            raise ValueError(f"'until' of {each['id']} is no date such as 2027-01-31")
        found.append(Ignored(each["id"], each["package"], each["reason"], each["until"]))
    return found


def judge(said: str, known: Sequence[Ignored], today: datetime.date) -> tuple[int, str]:
    """The exit status and the words for what pip-audit printed."""
    try:
        dependencies: list[dict[str, Any]] = json.loads(said)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return UNKNOWN, "nobody was asked for vulnerabilities: the index does not answer"
    lines, unasked = [], [one["name"] for one in dependencies if "skip_reason" in one]
    for one in dependencies:
        for found in one.get("vulns", []):
            names = {found["id"], *found.get("aliases", [])}
            pardon = next((i for i in known if i.identity in names and i.package == one["name"]), None)
            if pardon and today < pardon.until:
                continue
            since = f", ignored until {pardon.until} only" if pardon else ""
            fixes = ", ".join(found.get("fix_versions", [])) or "nothing yet"
            lines.append(f"{one['name']} {one['version']}: {found['id']}{since}; mended by {fixes}")
    if lines:
        return VULNERABLE, "\n".join(["known vulnerabilities in what is shipped:", *lines])
    if unasked or not dependencies:
        # pip-audit itself takes that for "none found".
        told = f"{len(unasked)} of {len(dependencies)}"
        return UNKNOWN, f"nobody was asked for vulnerabilities of {told}: the index does not tell of them"
    return NONE, f"no known vulnerabilities in {len(dependencies)} distributions"


def audit(program: str, lock: Path, options: Sequence[str] = ()) -> tuple[int, str]:
    """Ask pip-audit about a lock."""
    command = [program, "--disable-pip", "--require-hashes", f"--requirement={lock}", "--format=json"]
    command += ["--progress-spinner=off", f"--timeout={_ANSWER}", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return UNKNOWN, f"nobody was asked for vulnerabilities: no answer for {_SECONDS} s"
    known = ignored((REQUIREMENTS / "ignored.toml").read_text())
    return judge(done.stdout, known, datetime.datetime.now(datetime.UTC).date())


def main(arguments: Sequence[str]) -> int:
    """Audit what is shipped; the exit status."""
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    status, words = audit(arguments[0], REQUIREMENTS / "runtime.txt", arguments[1:])
    sys.stdout.write(f"{words}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
