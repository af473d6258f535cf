"""Metering: what a finished request costs, and the ledger that keeps it."""
