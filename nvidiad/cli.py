# SPDX-License-Identifier: Apache-2.0
"""The command line: verbs, options, exit statuses; imports are lazy, as `status` must cost little."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from nvidiad.nouns.errors import Failure
    from nvidiad.verbs.ports import Bus

OK, FAILED, USAGE, NOT_RUNNING, NOT_READY = range(5)
WAIT = 75
"""Of `reboot-check`, as EX_TEMPFAIL of sysexits.h: not now."""
# Nothing is missing that this host should have.
_IN_ORDER = ("ready", "no-gpu", "standing-back")
_FAST = {"": "off", "--json=off": "off", "--json=short": "short", "--json=pretty": "pretty"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        style = _FAST.get(" ".join(given[1:] if given[:1] == ["status"] else given))
        if style:
            # The road that people and probes take most: without even argparse.
            from nvidiad.rim.client import SOCKET

            return _status(SOCKET, style)
        if given in (["activate"], ["deactivate"], ["cdi"], ["health"]):
            return _activate_host(given[0])
        return _dispatch(given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return FAILED
    except _failures() as failure:
        return _fail(failure)


def _failures() -> type[Failure]:
    """What is told in one sentence; imported only when something was raised."""
    from nvidiad.nouns.errors import Failure

    return Failure


def _fail(failure: Failure) -> int:
    print(f"nvidiad: {failure.sentence} [{failure.code}]", file=sys.stderr)
    if failure.remedy:
        print(f"{failure.remedy}", file=sys.stderr)
    return NOT_RUNNING if failure.code == "not-running" else FAILED


def _dispatch(given: list[str]) -> int:
    options = _parse(given)
    match options.verb:
        case "status":
            return _status(options.socket, options.json)
        case "reconcile":
            return _reconcile(options)
        case "plan":
            return _plan(options)
        case "list":
            return _list(options)
        case "check":
            return _check(options)
        case "explain":
            return _explain(options)
        case "install":
            return _install(options)
        case "gc":
            return _gc(options)
        case "reboot-check":
            return _reboot_check(options)
        case "run":
            from nvidiad import app

            return app.run_daemon(options.config, options.root)
        case verb:
            return _activate(verb, options.config, options.root)


def _parse(given: list[str]) -> argparse.Namespace:
    # The default verb: options alone are options of `status`.
    if given and given[0].startswith("-") and given[0] not in ("-h", "--help", "--version"):
        given = ["status", *given]
    from nvidiad.options import parser

    return parser().parse_args(given)


def _status(socket: str, json: str) -> int:
    from nvidiad.rim import client

    if json == "off":
        phase, body = client.status(socket, colour=_colour())
    else:
        phase, body = client.status_json(socket, pretty=json == "pretty")
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    if not body.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    return OK if phase in _IN_ORDER else NOT_READY


def _colour() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _bus(root: Path) -> Bus | None:
    """The system bus of this host; who looks at another one, or has none, goes without units and logind."""
    from nvidiad import app

    if str(root) != "/":
        return None
    try:
        return app.connect()
    except _failures() as failure:
        print(f"nvidiad: {failure.sentence}, going on without it", file=sys.stderr)
        return None


def _reconcile(options: argparse.Namespace) -> int:
    from nvidiad.rim import client

    client.call(options.socket, "io.nvidiad.Reconcile")
    print("nvidiad looks at the host now; follow it with: nvidiad status", file=sys.stderr)
    return OK


def _plan(options: argparse.Namespace) -> int:
    import time

    from nvidiad import __version__, app
    from nvidiad.configuration import read_settings
    from nvidiad.thought import planner
    from nvidiad.thought.activation import activate
    from nvidiad.thought.document import document
    from nvidiad.verbs.observer import observe

    settings = read_settings(options.config)
    ports = app.all_ports(settings, options.root, _bus(options.root))
    facts = observe(ports, settings)
    now = time.time()
    plan = planner.decide(facts, settings, ports.driver.memories.read(), now)
    status = planner.assess(facts, settings, plan, now=now)
    inner = activate(facts.driver, settings)
    if options.json != "off":
        _print_json(document(status, version=__version__, memory=ports.driver.memories.read()), options.json)
        return OK
    print(f"{status.phase}: {status.summary}")
    print(f"because {plan.reason}")
    for step in plan.steps:
        print(f"  - {step.describe()}")
    if inner.steps:
        print("nvidia.service then brings it into force:")
        for step in inner.steps:
            print(f"  - {step.describe()}")
    if not plan.steps and not inner.steps:
        print("nothing is to be done")
    if plan.problem:
        print(f"problem: {plan.problem.sentence} [{plan.problem.code}]")
        if plan.problem.remedy:
            print(plan.problem.remedy)
    return OK


def _list(options: argparse.Namespace) -> int:
    import time

    from nvidiad import app
    from nvidiad.configuration import read_settings
    from nvidiad.nouns.model import Kind
    from nvidiad.thought import planner
    from nvidiad.thought.render import table
    from nvidiad.verbs.observer import observe

    settings = read_settings(options.config)
    all_ports = app.all_ports(settings, options.root, _bus(options.root))
    ports, facts = all_ports.driver, observe(all_ports, settings)
    stages = planner.decide(facts, settings, ports.memories.read(), time.time()).stages
    staged = {stage.tree for stage in stages}
    current = [ports.trees.current(kind) for kind in Kind]
    trees = [tree for kind in Kind for tree in ports.trees.list(kind)]
    loaded = {module.name: module.version for module in ports.modules.loaded()}.get("nvidia")
    kernel = ports.host.kernel()
    rows = []
    for tree in trees:
        build = tree.build
        marks = [
            *(["current"] if tree.path in current else []),
            *(["loaded"] if build.driver == loaded and build.kernel == kernel else []),
            *(["staged"] if tree.path in staged else []),
        ]
        rows.append(
            (
                *(str(build.kind), build.driver, build.os_version, build.kernel),
                *(str(tree.flavour or ""), ",".join(marks), tree.path),
            )
        )
    if options.json != "off":
        keys = ("kind", "version", "os", "kernel", "flavour", "state", "path")
        _print_json([dict(zip(keys, row, strict=True)) for row in rows], options.json)
        return OK
    print(table(rows, ("KIND", "VERSION", "OS", "KERNEL", "FLAVOUR", "STATE", "PATH")), end="")
    return OK


def _check(options: argparse.Namespace) -> int:
    import shutil

    from nvidiad import check
    from nvidiad.thought import examination

    found = tuple(check.checks(options))
    if options.json != "off":
        _print_json([examination.row(each) for each in found], options.json)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        print(examination.listing(found, width=width, colour=_colour()), end="")
    return OK if examination.in_order(found) else FAILED


def _explain(options: argparse.Namespace) -> int:
    import shutil

    from nvidiad import explain

    width = min(shutil.get_terminal_size().columns, 100)
    told, faults = explain.answer(options.codes, options.json, width)
    sys.stdout.write(told)
    for fault in faults:
        print(f"nvidiad: {fault}", file=sys.stderr)
    return USAGE if faults else OK


def _install(options: argparse.Namespace) -> int:
    import os

    from nvidiad import app
    from nvidiad.rim import client
    from nvidiad.rim.terminal import ProgressLine
    from nvidiad.world.journal import PlainLog

    progress = ProgressLine(sys.stderr)
    try:
        tree = app.install(options.what, options.config, options.root, PlainLog(os.environ), progress.show)
    finally:
        progress.end()
    print(tree)
    try:
        client.call(options.socket, "io.nvidiad.Reconcile")
    except _failures():
        print(
            "The daemon does not run; bring the driver up with: systemctl start nvidia.service",
            file=sys.stderr,
        )
    return OK


def _gc(options: argparse.Namespace) -> int:
    from nvidiad import app
    from nvidiad.configuration import read_settings
    from nvidiad.thought import cuda
    from nvidiad.thought.retention import expendable
    from nvidiad.verbs.observer import look_at_cuda, observe

    settings = read_settings(options.config)
    ports = app.all_ports(settings, options.root, _bus(options.root))
    gone = expendable(observe(ports, settings), settings, ports.driver.memories.read())
    for tree in (*gone, *cuda.expendable(look_at_cuda(ports.driver), cuda.wanted(settings))):
        if not options.dry_run:
            ports.driver.trees.remove(tree.path)
        print(f"{'would remove' if options.dry_run else 'removed'} {tree.path}")
    return OK


def _look_at_reboot(options: argparse.Namespace) -> tuple[bool, str, float | None]:
    import time
    from contextlib import suppress

    from nvidiad import app
    from nvidiad.configuration import read_settings
    from nvidiad.nouns.errors import Failure
    from nvidiad.thought import planner
    from nvidiad.verbs.observer import observe

    settings = read_settings(options.config)
    ports = app.all_ports(settings, options.root, _bus(options.root))
    facts, now = observe(ports, settings), time.time()
    before = ports.driver.memories.read()
    memory = planner.notice(before, facts, settings)
    if memory != before and str(options.root) == "/":
        # Nobody else counts how long the reboot waits; who may not write this down asks in vain.
        with suppress(Failure):
            ports.driver.memories.write(memory)
    said = planner.decide(facts, settings, memory, now).verdict
    return said.go, said.reason, said.until


def _reboot_check(options: argparse.Namespace) -> int:
    """Asks the daemon; without one it looks itself, so that a stopped daemon holds no reboot for ever."""
    import time

    from nvidiad.nouns.errors import Failure
    from nvidiad.rim import client

    try:
        said = client.reboot(options.socket)
    except Failure as failure:
        if failure.code != "not-running":
            raise
        said = None
    go, reason, until = said or _look_at_reboot(options)
    go = go or (until is not None and time.time() >= until)
    print(reason)
    return OK if go else WAIT


def _activate_host(verb: str) -> int:
    """What the units run, on the way to every kubelet start."""
    from pathlib import Path

    from nvidiad.configuration import FILE

    return _activate(verb, FILE, Path("/"))


def _activate(verb: str, configuration: Path, root: Path) -> int:
    import os

    from nvidiad.world.journal import PlainLog

    log = PlainLog(os.environ)
    if verb in ("activate", "deactivate"):
        from nvidiad import app

        return (app.activate if verb == "activate" else app.deactivate)(configuration, root, log)
    from nvidiad import beside

    return {"cdi": beside.cdi, "health": beside.health, "fabric": beside.fabric}[verb](
        configuration, root, log
    )


def _print_json(value: object, style: str) -> None:
    import json

    print(json.dumps(value, indent=2 if style == "pretty" else None))
