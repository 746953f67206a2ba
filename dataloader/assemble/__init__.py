"""Training sets out of what distributions and folders hold: photographs, the sample set, class folders, packs."""
