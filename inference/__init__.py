"""An LR picture or a class in, a picture out: windows, batches, rendering, runs over folders of files."""
