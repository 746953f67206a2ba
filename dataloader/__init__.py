"""Training samples: which pictures, which crops of them, what the degradation makes of them, as pairs in batches."""
