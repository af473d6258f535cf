"""The model that ships inside the package: its text, its tokenizer, its training."""
