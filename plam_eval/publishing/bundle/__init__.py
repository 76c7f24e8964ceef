"""Runs in one archive, and what they claim recomputed."""
