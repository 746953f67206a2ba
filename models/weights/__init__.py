"""Weights on disk and on the hub: loading, saving, foreign formats, conversion."""
