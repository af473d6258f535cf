"""Speed and memory, each figure beside its peer, measured in one run, after the outputs were compared.

Run with ``python -m bench [NAME ...] [--quick]`` from the repository's root. Each bench is one module of this package
with ``NAME``, ``TITLE`` and ``run(session)``; `registry.py` lists them in the order they run.
"""
