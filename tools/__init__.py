"""Scripts for those who work on plam-eval; none of them is installed."""
