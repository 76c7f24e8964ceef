"""Measures what this project says of its speed, and writes one page: `make bench`.

Each section is one call of a script of benchmarks/, and is kept as soon as it has ended: stopped, the same command goes
on with the sections that are left. A section that was measured from other code is measured anew, and so are those that
`--only` names, and all with `--fresh`. The page is written after each section, of all that there are.

A quick run (`--quick`) takes some minutes, and goes into out/bench: its figures say nothing but that the scripts work.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.bench.machine import ROOT, Others, code, commit, machine, software
from benchmarks.bench.page import BUSY, PICTURE, draw, page, rounds_of
from benchmarks.bench.record import problems_of
from benchmarks.bench.sections import ROUNDS, SECTIONS, Section, chosen
from plam_eval.errors import DamagedFileError, InputError, listed, quoted, system_error
from plam_eval.files import read_json, write_in_one_step, write_json

REMEDY = "measure that section again: make bench ARGS='--only NAME'"
FORM = 2
"""Of a section's record; one of another form cannot be shown."""
PATIENCE = 4
"""Budgets after which a section is ended."""


def measure(section: Section, work: Path, logs: Path, *, quick: bool) -> dict[str, Any]:
    """Run a section's script to its end.

    Args:
        section: what is measured.
        work: folder for what is kept between runs, such as a large pair.
        logs: folder for what the script prints.
        quick: whether it is only tried.

    Returns:
        The record of it, as it is stored.

    Raises:
        InputError: the script failed, or handed on nothing that can be read.
    """
    logs.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    words = [word.replace("{work}", str(work)) for word in (section.quick if quick else section.full)]
    log, others = logs / f"{section.name}.txt", Others()
    at, started = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **section.environment, "PYTHONPATH": path}
    own = code()
    with tempfile.TemporaryDirectory() as scratch:
        environment["TMPDIR"] = scratch  # a script that is killed leaves its files here
        file = Path(scratch, "rows.json")
        script = str(ROOT / "benchmarks" / section.script)
        with log.open("w", encoding="utf-8") as output:
            command = [sys.executable, script, *words, "--json", str(file)]
            status = _to_its_end(command, environment, output, PATIENCE * section.budget)
        if status or not file.exists():
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            late = f"ended after {PATIENCE * section.budget} s" if status is None else f"exit status {status}"
            raise InputError(f"{section.script}: {late}, and it said: {said[-1]} (all: {log})")
        found = read_json(file, REMEDY)
    shown = " ".join(shlex.quote(word) for word in (section.quick if quick else section.full))
    record = {
        "section": section.name,
        "form": FORM,
        "quick": quick,
        "at": at.isoformat(timespec="seconds"),
        "took": time.perf_counter() - started,
        "others": others.share(),
        "commit": commit(),
        "code": own,
        "command": f"python benchmarks/{section.script} {shown}".replace("{work}", "out/bench/work"),
        "machine": machine() | {"threads": environment["OMP_NUM_THREADS"]},
        "versions": software(),
        **found,
    }
    if problems := problems_of(record, section.name):
        raise InputError(f"{section.script}: handed on what cannot be shown: {listed(problems, 3)}")
    return record


def _to_its_end(command: Sequence[str], environment: dict[str, str], output: IO[str], limit: float) -> int | None:
    """The exit status of a command; None where it took too long. Its own processes end with it, whatever ends it."""
    work = subprocess.Popen(
        command,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return work.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(work.pid, signal.SIGKILL)
        work.wait()


def stored(results: Path) -> dict[str, dict[str, Any]]:
    """The sections that have been measured, by name; what cannot be read is named, and left out.

    Args:
        results: folder of their JSON.
    """
    found = {}
    for section in SECTIONS:
        file = results / f"{section.name}.json"
        if file.exists():
            try:
                record = read_json(file, REMEDY)
            except (InputError, DamagedFileError) as error:
                print(f"{section.name}: left out: {error}")
                continue
            except OSError as error:
                print(f"{section.name}: left out: {system_error(error)}; {REMEDY}")
                continue
            if record.get("form") != FORM:
                said = f"{file} is of form {quoted(record.get('form'))}, expected {FORM}"
                print(f"{section.name}: left out: {said}; {REMEDY}")
            elif problems := problems_of(record, section.name):
                print(f"{section.name}: left out: {file}: {listed(problems, 3)}; {REMEDY}")
            else:
                found[section.name] = record
    return found


def write_page(results: Path, file: Path) -> bool:
    """Write the page of every section that there is; whether there is one. Without any, a page stays as it is.

    Args:
        results: folder of their JSON.
        file: the page.
    """
    records = stored(results)
    if not records:
        print(f"{results}: no results, so that {file} is not written; measure some: make bench")
        return False
    if "growth" in records and (series := records["growth"]["raw"].get("series")):
        draw(series, file.parent / PICTURE)
    text = page(records, results.name)
    write_in_one_step(file, lambda path: path.write_text(text, encoding="utf-8"))
    return True


def is_done(record: dict[str, Any] | None, *, quick: bool) -> bool:
    """Whether a stored section was measured from the code that is checked out.

    Args:
        record: of the section, if there is one.
        quick: what is asked for.
    """
    return record is not None and record["quick"] == quick and record.get("code") == code() != ""


def run(
    sections: Sequence[Section], results: Path, file: Path, *, quick: bool, again: bool, minutes: float = math.inf
) -> int:
    """Measure what is left of `sections`, and write the page.

    Args:
        sections: in their order.
        results: folder of the sections' JSON.
        file: the page.
        quick: whether scripts are only tried.
        again: measure those again, too, that have been.
        minutes: begin no section that by its budget would end later.

    Returns:
        The exit status: 1 where a section failed, or, in a full run, one has `faults`.
    """
    known, own = stored(results), ROOT / "out" / "bench"
    left = [section for section in sections if again or not is_done(known.get(section.name), quick=quick)]
    for section in sections:
        if section not in left:
            print(f"{section.name}: kept, of {known[section.name]['at']}")
    if not quick:
        print(
            f"{len(left)} section(s), about {sum(section.budget for section in left) / 60:.0f} minutes on quiet cores"
        )
    failed, started = 0, time.monotonic()
    for number, section in enumerate(left, 1):
        if time.monotonic() - started + section.budget > 60 * minutes:
            print(f"[{number}/{len(left)}] {section.name}: left for the next time, its budget is {section.budget} s")
            continue
        budget = "" if quick else f", budget {section.budget} s"
        print(f"[{number}/{len(left)}] {section.name}{budget} ...", end=" ", flush=True)
        if section.needs and importlib.util.find_spec(section.needs) is None:
            print(f"left out: {section.needs} is not installed")
            continue
        try:
            record = measure(section, own / ("quick-work" if quick else "work"), own / "logs", quick=quick)
        except (InputError, DamagedFileError) as error:
            failed += 1
            print(f"FAILED\n    {error}")
            continue
        results.mkdir(parents=True, exist_ok=True)
        write_json(results / f"{section.name}.json", record)
        busy = f", others kept {record['others']:.1f} cores busy" if (record["others"] or 0) > BUSY else ""
        print(f"{record['took']:.0f} s{busy}", flush=True)
        write_page(results, file)
    if write_page(results, file):
        print(f"written: {file}")
    found = stored(results)
    for section in sections:
        for fault in [] if quick or section.name not in found else faults(found[section.name]):
            failed += 1
            print(f"{section.name}: {fault}")
    return int(failed > 0)


def faults(record: dict[str, Any]) -> list[str]:
    """Why what was found of a section is not what the page promises, though its script has ended well.

    Args:
        record: of a full run.
    """
    found = []
    if (least := min(rounds_of(record), default=0)) < ROUNDS:
        found.append(f"found {least} round(s) of something, expected {ROUNDS} or more")
    return found + [
        f"{each['name']}: {each['said']}" for each in record["raw"].get("series", []) if each["unexplained"]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="NAMES", help="some of: " + ", ".join(section.name for section in SECTIONS))
    parser.add_argument("--quick", action="store_true", help="see whether everything works, on the smallest models")
    parser.add_argument("--fresh", action="store_true", help="measure all anew")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no section that would end later")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--output", type=Path, help="folder of the page (benchmarks/; out/bench of a quick run)")
    given = parser.parse_args(arguments)
    try:
        sections = chosen(given.only)
    except ValueError as error:
        parser.error(str(error))
    folder = given.output or (ROOT / "out" / "bench" if given.quick else ROOT / "benchmarks")
    results, file = folder / "results", folder / "RESULTS.md"
    try:
        if given.page:
            return 0 if write_page(results, file) else 1
        again = given.fresh or given.only is not None
        return run(sections, results, file, quick=given.quick, again=again, minutes=given.minutes)
    except KeyboardInterrupt:
        print("\nstopped; what has been measured is kept, and the same command goes on")
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the section that runs ends with this process
    sys.exit(main())
