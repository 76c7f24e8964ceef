"""A merged checkpoint in the layout of the model that it was merged into."""
