"""The other implementations that the benches run beside ours."""
