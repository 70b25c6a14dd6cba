"""What a run leaves behind: its folder, metrics, checkpoints, samples, and where its numbers come from."""
