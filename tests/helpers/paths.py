"""Where the checkout is, and the embedded pair in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAIR = ROOT / "plam_eval" / "demo" / "pair"
