"""Files that leaderboards take, from the sample logs of runs."""
