# The server: docker build --tag longsight . (docs/deployment.md)
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ENV LONGSIGHT_VENV=/opt/longsight \
    LONGSIGHT_REQUIRE_KERNELS=1 \
    UV_COMPILE_BYTECODE=1
# Versions from locks/python.txt, PyTorch without CUDA. What installed them stays behind.
RUN python3 scripts/setup.py postgres,otel --torch cpu --from . \
 && /opt/longsight/bin/python -m uv pip uninstall --quiet pip uv

FROM python:${PYTHON}
RUN useradd --uid 10001 --user-group --home-dir /data --create-home longsight \
 && mkdir /models
COPY --from=build /opt/longsight /opt/longsight
ENV PATH=/opt/longsight/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
# /models: checkpoints, read only. /data: keys, uploads, the cache of --kv-dir.
VOLUME ["/models", "/data"]
EXPOSE 8000
# Reading a large checkpoint takes minutes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=4 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["longsight"]
CMD ["serve", "--host", "0.0.0.0"]
