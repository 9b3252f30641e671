# SPDX-License-Identifier: Apache-2.0
"""Alerts and dashboard: only metrics that there are, promtool on the rules, links that lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Phase
from nvidiad.nouns.upcoming import StageState
from nvidiad.thought import metrics
from tests.beds.common import BedError, require
from tests.unit.test_docs import anchors

CHECKOUT = Path(__file__).parents[2]
PROMETHEUS = CHECKOUT / "contrib/prometheus"
RULES = yaml.safe_load((PROMETHEUS / "nvidiad.rules.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((CHECKOUT / "contrib/grafana/nvidiad.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
# Prometheus' own.
FOREIGN = {"up", "ALERTS"}
SITE = "https://docs.example/nvidiad"
LABELS: dict[str, set[str]] = {"phase": {*Phase}, "code": {*Code}, "state": {*StageState}}
NAME = re.compile(r"\b((?:nvidiad|process|node)_[a-z_]+)\b|\b(up)\{")


def told() -> set[str]:
    """Every family that the daemon has: its name is the first thing that a tuple says."""
    source = Path(metrics.__file__).read_text()
    return set(re.findall(r'^ +(?:yield )?\(?"((?:nvidiad|process)_[a-z_]+)",', source, re.MULTILINE)) | set(
        re.findall(r'yield "((?:nvidiad|process)_[a-z_]+)",', source)
    )


def unknown(expression: str) -> set[str]:
    used = {first or second for first, second in NAME.findall(expression)}
    assert used or "ALERTS" in expression, f"names no metric: {expression}"
    return used - told() - FOREIGN


def values(expression: str) -> set[tuple[str, str]]:
    """Of the labels whose values we know: which an expression asks for."""
    found = set()
    for label, wanted in re.findall(r'\b(\w+)(?:=|=~|!=|!~)"([^"]*)"', expression):
        found |= {(label, value) for value in wanted.split("|") if label in LABELS}
    return found


def missing(expression: str) -> set[tuple[str, str]]:
    return {(label, value) for label, value in values(expression) if value not in LABELS[label]}


EXPRESSIONS = [
    *((name, rule["expr"]) for name, rule in ALERTS.items()),
    *((panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]),
    *((each["name"], each["expr"]) for each in DASHBOARD["annotations"]["list"]),
]


def test_the_list_of_metrics_is_whole() -> None:
    assert {"nvidiad_ready", "nvidiad_stage", "nvidiad_steps_total", "process_open_fds"} <= told()
    assert len(told()) >= 28


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=lambda value: value[:40])
def test_only_what_the_daemon_tells_is_asked_for(name: str, expression: str) -> None:
    assert unknown(expression) == set(), name
    assert missing(expression) == set(), name


@pytest.mark.parametrize(
    "expression",
    ["nvidiad_raedy == 0", 'nvidiad_phase{phase="stuck"} == 1', 'nvidiad_problem{code=~"a|no-gpu"}'],
)
def test_the_rule_sees_what_is_not_there(expression: str) -> None:
    assert unknown(expression) | missing(expression)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_and_leads_to_a_page(name: str) -> None:
    rule = ALERTS[name]
    assert name.startswith("Nvidiad")
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    if "$labels.code" in (url := rule["annotations"]["runbook_url"]):
        assert url == f"{SITE}/man/nvidiad-codes.7/#{{{{ $labels.code }}}}"
        return
    page = re.fullmatch(rf"{SITE}/([a-z-]+)/#([a-z-]+)", url)
    assert page, "a page of the site and a heading of it"
    assert page[2] in anchors((CHECKOUT / f"docs/{page[1]}.md").read_text())


def test_every_alert_has_a_test() -> None:
    tested = {path.name: path.read_text() for path in PROMETHEUS.glob("*.test.yml")}
    for name in ALERTS:
        text = "".join(tested.values())
        assert re.search(rf'exp_samples:\n +- \{{?labels: \'ALERTS\{{alertname="{name}"', text), name
    for text in tested.values():
        assert yaml.safe_load(text)["rule_files"] == ["nvidiad.rules.yml"]


@pytest.fixture(scope="module")
def promtool() -> str:
    if not shutil.which("promtool"):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.skip("promtool is not installed")
        try:
            require("prometheus")
        except BedError as error:
            pytest.skip(str(error))
    return "promtool"


def checked(*command: str) -> str:
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules(promtool: str) -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in checked(promtool, "check", "rules", "nvidiad.rules.yml")
    assert "is valid prometheus config file syntax" in checked(promtool, "check", "config", "scrape.yml")


def test_promtool_runs_the_tests_of_the_rules(promtool: str) -> None:
    paths = sorted(path.name for path in PROMETHEUS.glob("*.test.yml"))
    assert checked(promtool, "test", "rules", *paths).count("SUCCESS") == len(paths)


# -- the dashboard ----------------------------------------------------------------------------------------


def test_panels_have_what_grafana_needs() -> None:
    assert DASHBOARD["uid"] == "nvidiad" and DASHBOARD["schemaVersion"] >= 36
    assert len({panel["id"] for panel in PANELS}) == len(PANELS) >= 15
    for panel in PANELS:
        assert panel["type"] in ("stat", "state-timeline", "table", "timeseries")
        assert panel["title"] and panel["targets"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_variable_that_is_used_is_there() -> None:
    there = {each["name"] for each in DASHBOARD["templating"]["list"]} | {
        "__rate_interval",
        "__all",
        "__value",
    }
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used <= there
    assert {"datasource", "instance"} <= used


def test_the_phases_are_named_by_their_numbers() -> None:
    [panel] = [panel for panel in PANELS if panel["title"] == "Phase"]
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    names = {number: value["text"] for number, value in mapping["options"].items()}
    asked = re.findall(r'(\d) \* \(nvidiad_phase\{phase="([a-z-]+)"', panel["targets"][0]["expr"])
    assert dict(asked) == names
    assert set(names.values()) == set(Phase)
