"""What leaves the house: merged checkpoints, files for leaderboards, results on the hub, archives."""
