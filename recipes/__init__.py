"""Models made from nothing: each folder holds what one needs, from its sources to the checkpoint."""
