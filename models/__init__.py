"""The network: tokenizer, transformer, refiner and the whole VARSR model. Imports nothing of ours from outside."""
