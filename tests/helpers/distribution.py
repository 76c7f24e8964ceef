"""plam-eval as it is installed: its metadata, and not what an earlier build left in the checkout."""

from __future__ import annotations

from importlib import metadata


def installed() -> metadata.Distribution:
    """The installed distribution. A stale `plam_eval.egg-info` in the working directory would otherwise come first."""
    return next(each for each in metadata.distributions(name="plam-eval") if each.read_text("METADATA"))
