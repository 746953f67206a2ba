"""Picture files: pixels in and out of them, with all else that they hold. Imports nothing of ours but `utils`."""
