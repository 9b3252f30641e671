# SPDX-License-Identifier: Apache-2.0
"""The words: the status document as text for a person, and the small shapes of text around it."""

from __future__ import annotations

# `typing`, `datetime` and the model's `dataclasses` cost more than all the rest of `nvidiad status`: they
# are imported where they are needed, or not at all.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nvidiad.nouns.plan import Status

Document = dict[str, object]

DOTS = {"ready": "●", "no-gpu": "○", "standing-back": "○", "converging": "↻", "blocked": "✗"}
COLOURS = {"ready": "32", "converging": "33", "waiting": "33", "pending-reboot": "33", "blocked": "31"}
USABLE = {"ready": "yes", "no-gpu": "no, there is none", "standing-back": "another owner keeps the driver"}
STATUS_LINE = 240

# The document may come from another version of nvidiad: whatever is missing or of an unexpected type is
# left out.


def _object(value: object) -> Document:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Document]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [clean(item) for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def clean(words: str) -> str:
    """One printable line: commands and registry answers must not steer a terminal or add a line."""
    words = " ".join(words.split())
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in words)


def span(seconds: float) -> str:
    """A length of time in its two largest units, as systemctl prints it."""
    rest = max(0, int(seconds))
    if rest >= 365 * 86400:
        return f"{rest // (365 * 86400)}y"
    words = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            words.append(f"{count}{unit}")
        elif words:
            break
    return " ".join(words[:2]) or "0s"


def moment(at: float) -> str:
    """A point in time, in UTC as the journal of a server has it."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(at, UTC).strftime("%a %Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def past(at: float, now: float) -> str:
    return f"{moment(at)}; {span(now - at)} ago"


def future(at: float, now: float) -> str:
    return f"{moment(at)}; in {span(at - now)}" if at > now else f"{moment(at)}; now"


def size(count: float) -> str:
    """Bytes in the unit that leaves two or three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def progress_line(progress: Document) -> str:
    """Where a long step stands, in one line."""
    done, total = _number(progress.get("done")) or 0, _number(progress.get("total")) or 0
    words = f"{_text(progress.get('step'))}: {_text(progress.get('detail'))}".strip(": ")
    if total > 0:
        return f"{words} ({size(done)} of {size(total)}, {min(100, int(100 * done / total))}%)"
    return f"{words} ({size(done)})" if done > 0 else words


def text(document: Document, *, now: float, colour: bool) -> str:
    """The document for a person: usable since when; what is where; what is awaited; what to do."""
    phase = _text(document.get("phase"))
    paint = _painter(COLOURS.get(phase, ""), on=colour)
    lines = [f"{paint(DOTS.get(phase, '●'))} {paint(phase)} - {_text(document.get('summary'))}"]
    rows = [
        *_usable_rows(document, now),
        *_driver_rows(document),
        *_cuda_rows(document),
        *_update_rows(document),
        *_reboot_rows(document, now),
        *_unit_rows(document, now),
        *_waiting_rows(document, now),
        *_todo_rows(document, _painter("1", on=colour)),
    ]
    previous = ""
    for key, value in rows:
        lines.append(f"{'' if key == previous else key + ':':>14} {value}")
        previous = key
    return "\n".join(lines) + "\n"


def _painter(code: str, *, on: bool) -> Callable[[str], str]:
    return lambda words: f"\x1b[{code}m{words}\x1b[0m" if on and code else words


Rows = list[tuple[str, str]]


def _usable_rows(document: Document, now: float) -> Rows:
    phase = _text(document.get("phase"))
    driver = _object(document.get("driver"))
    since = _number(document.get("since"))
    usable = USABLE.get(phase, "no")
    if phase not in USABLE and document.get("usable"):
        end = "the reboot" if phase == "pending-reboot" else f"{_text(driver.get('wanted'))} takes its place"
        usable = f"with driver {_text(driver.get('loaded'))} until {end}"
    rows = [("Usable", f"{usable}, since {past(since, now)}" if since else usable)]
    for gpu in _objects(document.get("gpus")):
        bound = _text(gpu.get("bound"))
        words = f"{_text(gpu.get('address'))} [{_text(gpu.get('device'))}], "
        known = ", ".join(filter(None, (_text(gpu.get("model")), _text(gpu.get("uuid")))))
        words += f"bound to {bound}" if bound else "not bound"
        rows.append(("GPU", f"{words}, {known}" if known else words))
    return rows


def _driver_rows(document: Document) -> Rows:
    driver = _object(document.get("driver"))
    release, kernel = _object(document.get("os")), _object(document.get("kernel"))
    exposure = _object(document.get("exposure"))
    rows: Rows = []
    if driver:
        modules = ", ".join(_text(module.get("name")) for module in _objects(driver.get("modules")))
        loaded = _text(driver.get("loaded"))
        rows.append(("Loaded", f"{loaded or 'unknown driver'} ({modules})" if modules else "none"))
        trees = _objects(driver.get("installed"))
        installed = [f"{_text(tree.get('path'))} ({', '.join(_marks(tree))})" for tree in trees]
        rows += [("Installed", line) for line in installed or ["none"]]
        wanted = " ".join(
            filter(None, (_text(driver.get("wanted")) or "nothing", _text(driver.get("product"))))
        )
        host = f"{_text(release.get('id'))} {_text(release.get('version'))}"
        rows.append(("Wanted", f"{wanted} for {host}, kernel {_text(kernel.get('release'))}"))
        rows += [("Image", image) for image in [_text(driver.get("image"))] if image]
        if who := _object(document.get("engine")):
            rows.append(("Fetched by", f"{_text(who.get('kind'))} ({_text(who.get('reason'))})"))
        nodes = _texts(driver.get("nodes_missing"))
        rows += [("No node", ", ".join(nodes))] if nodes else []
    if exposure:
        reason = _text(exposure.get("reason"))
        rows.append(("Exposure", _text(exposure.get("way")) + (f" ({reason})" if reason else "")))
    return rows


def _cuda_rows(document: Document) -> Rows:
    cuda = _object(document.get("cuda"))
    if not cuda:
        return []
    trees = _objects(cuda.get("installed"))
    code = _text(_object(cuda.get("problem")).get("code"))
    rows: Rows = []
    for tree in trees:
        if tree.get("current") is True:
            # Current and with a problem: the driver has become too old for it since.
            also = f", {code}" if code and tree.get("wanted") is True else ""
            rows.append(("CUDA", f"{_text(tree.get('version'))} (current{also})"))
    if not any(tree.get("current") is True and tree.get("wanted") is True for tree in trees):
        rows.append(("CUDA", f"{_text(cuda.get('wanted'))} (wanted{', ' + code if code else ''})"))
    return rows


def _marks(tree: Document) -> list[str]:
    marks = [mark for mark in ("current", "loaded", "wanted", "staged") if tree.get(mark) is True]
    return [*marks, _text(tree.get("flavour"))]


def _update_rows(document: Document) -> Rows:
    update = _object(document.get("update"))
    version = _text(update.get("version"))
    doing = _text(update.get("operation")).removeprefix("UPDATE_STATUS_").replace("_", " ").lower()
    stages = _objects(document.get("stages"))
    if not update and not stages:
        return []
    running = _text(_object(document.get("os")).get("version"))
    if not stages and version in ("", "0.0.0", running):
        return [("Next OS", f"none ({doing})")]
    rows: Rows = []
    for stage in stages:
        tree, problem = _text(stage.get("tree")), _object(stage.get("problem"))
        kernel = _text(stage.get("kernel"))
        where = f"driver {_text(stage.get('driver'))} {_text(stage.get('state'))}"
        where += f": {tree}" if tree else ""
        where += f" ({_text(problem.get('code'))}: {_text(problem.get('sentence'))})" if problem else ""
        name = _text(stage.get("version")) or kernel or "unknown"
        rows.append(("Next OS", f"{name} ({doing or _text(stage.get('source'))}), {where}"))
    return rows or [("Next OS", f"{version} ({doing})")]


def _reboot_rows(document: Document, now: float) -> Rows:
    """Whether a reboot may go is worth a line only where something comes."""
    said = _object(document.get("reboot"))
    if not _objects(document.get("stages")):
        return []
    until = _number(said.get("until"))
    word = "may go" if said.get("go") is True else "held"
    word += f" until {future(until, now)}" if until else ""
    return [("Reboot", f"{word}: {_text(said.get('reason'))}")]


def _unit_rows(document: Document, now: float) -> Rows:
    rows: Rows = []
    held_back = _text(document.get("phase")) not in USABLE
    for unit in _objects(document.get("units")):
        since = _number(unit.get("since"))
        state = _text(unit.get("active"))
        if state == "active" and since:
            state += f" ({_text(unit.get('sub'))}) since {past(since, now)}"
        elif _text(unit.get("load")) not in ("loaded", ""):
            state = _text(unit.get("load"))
        elif state == "failed":
            state += f" ({_text(unit.get('result'))})"
        held = held_back and unit.get("gated") is True and not state.startswith("active ")
        rows.append(
            ("Units", f"{_text(unit.get('name'))} {state}{', waits for the driver' if held else ''}")
        )
    return rows


def _waiting_rows(document: Document, now: float) -> Rows:
    rows: Rows = []
    progress = _object(document.get("progress"))
    if progress:
        rows.append(("Doing", progress_line(progress)))
    for holder in _objects(_object(document.get("driver")).get("holders")):
        words = f"{_text(holder.get('command'))} (pid {int(_number(holder.get('pid')) or 0)})"
        rows.append(
            ("In use by", words + (f" of {_text(holder.get('unit'))}" if holder.get("unit") else ""))
        )
    problem = _object(document.get("problem"))
    if problem:
        # The first line mostly has the sentence already.
        told = _text(problem.get("sentence")) == _text(document.get("summary"))
        rows.append(
            ("Problem", _text(problem.get("code")) + ("" if told else f": {_text(problem.get('sentence'))}"))
        )
    report = _object(document.get("report"))
    failed = next((step for step in _objects(report.get("steps")) if _object(step.get("problem"))), None)
    if failed:
        after = f"{_text(failed.get('description'))}, after {span(_number(failed.get('seconds')) or 0)}"
        why = _object(failed.get("problem"))
        # While the next try is under way there is no problem to tell: then this one says why there is one.
        again = "" if problem else f": {_text(why.get('sentence'))} [{_text(why.get('code'))}]"
        rows.append(("Failed at", after + again))
    next_try = _number(document.get("next_try"))
    if next_try:
        rows.append(("Next try", future(next_try, now)))
    return rows


def _todo_rows(document: Document, bold: Callable[[str], str]) -> Rows:
    remedy = _text(_object(document.get("problem")).get("remedy"))
    rows: Rows = [("To do", bold(remedy))] if remedy else []
    return rows + [("Warning", warning) for warning in _texts(document.get("warnings"))]


def status_line(status: Status) -> str:
    """For sd_notify's STATUS=: one line, for a newline would begin another assignment."""
    line = clean(f"{status.phase}: {status.summary}")
    return line if len(line) <= STATUS_LINE else line[: STATUS_LINE - 1] + "…"


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Columns as wide as their widest cell; an empty cell is a dash."""
    cells = [[clean(cell) or "-" for cell in row] for row in rows]
    if header:
        cells.insert(0, list(header))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))] if cells else []
    lines = (" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(line.rstrip() + "\n" for line in lines)
