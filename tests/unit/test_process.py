# SPDX-License-Identifier: Apache-2.0
"""Programs: their environment, their end, and what is said when they fail or never end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.world import process

SOON = 10.0
# A program that never ends has so many seconds to say what it has to say first.
BRIEF = 3


def test_output_and_status() -> None:
    finished = process.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=SOON)
    assert (finished.returncode, finished.out, finished.err) == (3, "out\n", "err\n")
    assert finished.said == "err"


def test_environment_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/nvidiad/lib")
    monkeypatch.setenv("MODPROBE_OPTIONS", "--dry-run")
    out = process.run(["env"], timeout=SOON).out.splitlines()
    assert {line for line in out if not line.startswith(("PWD=", "SHLVL=", "_="))} == {
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL=C.UTF-8",
    }


def test_input_is_empty_unless_given() -> None:
    assert process.run(["cat"], timeout=SOON).out == ""
    assert process.run(["cat"], timeout=SOON, input="text\n").out == "text\n"


def test_own_session_directory_and_umask() -> None:
    before = os.umask(0o077)
    try:
        out = process.run(["sh", "-c", "ps -o sid= -p $$; echo $$; pwd; umask"], timeout=SOON).out.split()
    finally:
        os.umask(before)
    assert out[0] == out[1]
    assert out[2:] == ["/", "0022"]


def test_undecodable_output_is_no_error() -> None:
    assert process.run(["printf", "\\377"], timeout=SOON).out == "\ufffd"


def test_large_output_on_both_pipes() -> None:
    script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero"
    finished = process.run(["sh", "-c", script], timeout=SOON)
    assert len(finished.out) == len(finished.err) == 300_000
    assert len(finished.said) <= process.SAID_AT_MOST + 1


def test_program_that_is_not_there() -> None:
    with pytest.raises(Failure, match="cannot start 'no-such-program --now': No such file") as caught:
        process.run(["no-such-program", "--now"], timeout=SOON)
    assert caught.value.code is Code.COMMAND_FAILED


def test_check_names_the_command_line_and_what_was_said() -> None:
    with pytest.raises(Transient) as caught:
        process.check(
            ["sh", "-c", "echo 'not today' >&2; echo; exit 7"],
            timeout=SOON,
            code=Code.EXPOSURE_FAILED,
            remedy="wait",
        )
    assert (
        str(caught.value)
        == "'sh -c 'echo '\"'\"'not today'\"'\"' >&2; echo; exit 7'' exited with 7: not today"
    )
    assert (caught.value.code, caught.value.remedy) == (Code.EXPOSURE_FAILED, "wait")


def test_check_names_the_signal() -> None:
    with pytest.raises(Transient, match=r"was killed by signal 9$"):
        process.check(["sh", "-c", "kill -9 $$"], timeout=SOON)


def test_timeout_kills_the_program_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 100 & echo $! $$ >{pids}; wait; wait"
    began = time.monotonic()
    with pytest.raises(Transient, match=rf"did not end within {BRIEF} s$"):
        process.run(["sh", "-c", script], timeout=BRIEF)
    assert time.monotonic() - began < 30
    for pid in pids.read_text().split():
        assert not _runs(int(pid))


def test_child_that_keeps_the_pipes_open_is_not_waited_for(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(Transient, match="did not end"):
        process.run(["sh", "-c", f"sleep 100 & echo $! >{pid_file}"], timeout=BRIEF)
    assert not _runs(int(pid_file.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process is there and is more than a zombie that its parent has not collected yet."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.01)
    return True


def test_lines_of_a_long_program_come_as_they_are_said(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line == "ready":
            # The program waits for this: its line was told before its end.
            fifo.write_text("go\n")

    process.follow(["sh", "-c", f"echo ready; read -r x <{fifo}; echo $x >&2"], timeout=SOON, say=say)
    assert lines == ["ready", "go"]


def test_a_long_program_that_fails_says_why() -> None:
    script = "seq 1000; echo last words >&2; exit 3"
    with pytest.raises(Failure, match=r"exited with 3: .*last words") as failed:
        process.follow(["sh", "-c", script], timeout=SOON, say=lambda _: None, code=Code.BUILD_FAILED)
    assert failed.value.code is Code.BUILD_FAILED and "500" not in failed.value.sentence


def test_a_long_program_that_never_ends_is_killed_with_its_children() -> None:
    pids: list[str] = []
    with pytest.raises(Transient, match=rf"did not end within {BRIEF} s"):
        process.follow(["sh", "-c", "sleep 1000 & echo $!; wait"], timeout=BRIEF, say=pids.append)
    deadline = time.monotonic() + SOON
    while (
        Path(f"/proc/{pids[0]}").exists() and "Z" not in Path(f"/proc/{pids[0]}/stat").read_text().split()[2]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
