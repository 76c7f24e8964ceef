"""`make bench`: every script of benchmarks/ that measures time or memory, and one page of what they found."""
