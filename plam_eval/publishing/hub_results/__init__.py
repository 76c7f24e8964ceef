"""Results in a model's repository on the hub."""
