"""plam-eval as it is installed: its metadata, and not what an earlier build left in the checkout."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from plam_eval.versions import Platform


def installed() -> metadata.Distribution:
    """The installed distribution. A stale `plam_eval.egg-info` in the working directory would otherwise come first."""
    return next(each for each in metadata.distributions(name="plam-eval") if each.read_text("METADATA"))


REQUIREMENTS = [Requirement(text) for text in installed().requires or []]


def needed(python: str, where: Platform, extra: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for there, by canonical name."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": where.sys_platform,
        "platform_machine": where.platform_machine,
        "extra": extra,
    }
    found = (each for each in REQUIREMENTS if each.marker is None or each.marker.evaluate(environment))
    return {canonicalize_name(each.name): each for each in found}
