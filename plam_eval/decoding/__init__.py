"""Many variants of a model in one generation: every cut (`all_cuts`), every merge (`all_merges`)."""
