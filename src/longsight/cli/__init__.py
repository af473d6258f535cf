"""The `longsight` command: one dispatcher, one small module per command."""
