"""The optional parts of the distribution: which modules they bring, and the line that adds one."""

from __future__ import annotations

import importlib.util
import shlex
import sys

# Not the import name: "longsight" on the package index is somebody else's.
DISTRIBUTION = "longsight-engine"
# Top-level modules that only some commands import -> the extra of pyproject.toml that installs them.
EXTRA_OF = {
    **dict.fromkeys(
        ("anyio", "httpx", "jinja2", "prometheus_client", "pydantic", "python_multipart", "sqlalchemy", "starlette"),
        "server",
    ),
    "uvicorn": "server",
    "opentelemetry": "otel",
    "psycopg": "postgres",
    "openai": "demo",
    "psutil": "demo",
    "matplotlib": "demo",
    "scipy": "eval",
    "transformers": "hf",
    "tensorboard": "train",
}


def install_command(extra: str) -> str:
    """The shell command that adds an extra to the environment that runs this code.

    pip and uv find the distribution installed, from a checkout or from a wheel, and fetch only what the extra asks for.
    """
    python = shlex.quote(sys.executable)
    installer = f"{python} -m pip install" if importlib.util.find_spec("pip") else f"uv pip install --python {python}"
    return f"{installer} '{DISTRIBUTION}[{extra}]'"
