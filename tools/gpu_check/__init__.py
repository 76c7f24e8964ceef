"""`make gpu`: every path of this project that runs on a device, on random checkpoints made on the spot."""
