"""Training: flags, stages, the loop that runs them, states and logs."""
