# SPDX-License-Identifier: Apache-2.0
"""Every YAML of contrib/ is validated by somebody who knows its format; CI services' workflows are here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
CONTRIB = CHECKOUT / "contrib"
FILES = sorted(path.relative_to(CONTRIB).as_posix() for path in CONTRIB.rglob("*.y*ml"))

# Which schema of check-jsonschema a file is to be valid by, or which test names it or its folder.
SCHEMAS = {
    "github/images.yml": "vendor.github-workflows",
    "gitlab/images.gitlab-ci.yml": "vendor.gitlab-ci",
}
ELSEWHERE = {
    "kubernetes/": ("unit/kubernetes/test_schemas.py", "contrib/kubernetes"),
    "prometheus/": ("unit/test_monitoring.py", "contrib/prometheus"),
    "provision/": ("unit/test_provision.py", "contrib/provision"),
}


@pytest.mark.parametrize("name", FILES)
def test_somebody_validates_it(name: str) -> None:
    told = [where for start, where in ELSEWHERE.items() if name.startswith(start)]
    assert (name in SCHEMAS) != bool(told)
    for test, words in told:
        assert words in (CHECKOUT / "tests" / test).read_text()


@pytest.mark.parametrize(("name", "schema"), SCHEMAS.items(), ids=SCHEMAS)
def test_a_workflow_is_as_its_service_takes_it(name: str, schema: str) -> None:
    assert _validated(CONTRIB / name, schema).returncode == 0


@pytest.mark.parametrize(("name", "schema"), SCHEMAS.items(), ids=SCHEMAS)
def test_a_misspelt_key_is_found(name: str, schema: str, tmp_path: Path) -> None:
    text = (CONTRIB / name).read_text()
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace("runs-on:", "run-on:").replace("script:", "scripts:"))
    assert wrong.read_text() != text
    assert _validated(wrong, schema).returncode != 0


def _validated(path: Path, schema: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, check=False)
