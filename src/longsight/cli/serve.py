"""`longsight serve`: a model behind the OpenAI API."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from longsight.cli.listening import Urls, add_listen_arguments, host_name, tls_of
from longsight.cli.metering import add_metering_arguments, open_meter
from longsight.cli.numbers import byte_size, http_url, positive, seconds
from longsight.cli.options import Loaded, add_engine_arguments, add_model_arguments, build_engine, load, model_path
from longsight.cli.paths import KEY_SCHEMES, Database, InputFile, OutputDirectory, OutputFile

if TYPE_CHECKING:
    from longsight.engine import Engine
    from longsight.server.auth import Authenticator
    from longsight.server.limits import Limits

EXAMPLES = """\
examples:
  longsight serve                                    # the embedded model, on http://127.0.0.1:8000/v1
  longsight serve path/to/checkpoint --port 9000
  longsight serve path/to/checkpoint --max-model-len 131072 --kv-memory 8GiB --max-running 4
  longsight serve path/to/checkpoint --ledger usage.db --currency DZD      # and then: longsight usage --ledger usage.db

then, from Python:
  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused")
  question = "The secret code for the amber falcon is 4417-KQX.\\n\\nWhat is the secret code for the amber falcon?"
  messages = [{"role": "user", "content": question}]
  print(client.chat.completions.create(model="longsight", messages=messages, temperature=0))

with API keys and limits (without --auth or --api-key, nobody is asked for a key and no rate is limited):
  longsight keys create alice --auth keys.db         # shows the new key once
  longsight serve --auth keys.db --limit rpm=60 --limit concurrency=4
  LONGSIGHT_API_KEY=... longsight serve              # one key for everything, without a database

/v1/chat/completions, /v1/completions, /v1/responses, /v1/models, /v1/files, /health, /ready, /metrics; Anthropic's
protocol, for Claude Code too, with /anthropic as its base URL (docs/clients.md); for a browser, a page for chat and for
looking at what the model reads, at /.
"""
log = logging.getLogger("longsight")
LEVELS = ("debug", "info", "warning", "error")
BUILT_IN_ID = "longsight"
DOCS = "docs/clients.md and docs/operations.md"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over the OpenAI API",
        description="Serve a model over the OpenAI API until Ctrl-C (at once) or SIGTERM (after what is under way).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    add_listen_arguments(parser)
    parser.add_argument(
        "--model-id", metavar="NAME", help="the model's name in requests; default: its directory's, or 'longsight'"
    )
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that requests may use for the model, as claude-sonnet-4-5; may be given several times",
    )
    parser.add_argument(
        "--chat-template",
        type=InputFile("a file with a Jinja template"),
        metavar="FILE",
        help="a Jinja template of conversations instead of the checkpoint's own; without either, MiniMax-M3's format",
    )
    parser.add_argument(
        "--reasoning-format",
        choices=("inline", "split"),
        default="inline",
        help="where chat completions put thinking if a request does not say: inline, as <think> in the content "
        "(default), or split, in reasoning_content",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--max-running", type=positive, default=16, metavar="N", help="requests that run at once (default 16)"
    )
    parser.add_argument(
        "--max-queue", type=positive, default=256, metavar="N", help="requests that may wait (default 256)"
    )
    parser.add_argument("--max-body", type=byte_size, metavar="SIZE", help="of a request (default 64MiB)")
    parser.add_argument(
        "--auth",
        type=Database(KEY_SCHEMES),
        metavar="DB",
        help="ask for API keys of this database: a path, or an SQLAlchemy URL (default: LONGSIGHT_AUTH, if set)",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="ask for this API key, which may do everything; better in LONGSIGHT_API_KEY, as others see arguments",
    )
    parser.add_argument(
        "--limits", type=InputFile("a TOML file"), metavar="FILE", help="a TOML file with a table [limits]"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one limit, over what the file says; may be repeated (keys: docs/limits.md)",
    )
    parser.add_argument(
        "--files-dir",
        type=OutputDirectory(),
        metavar="DIR",
        help="keep uploaded files in this directory; default: a temporary one, removed when the server ends",
    )
    parser.add_argument(
        "--allow-private-urls",
        action="store_true",
        help="fetch images and videos by URL from private addresses too, as of this machine and its network",
    )
    parser.add_argument(
        "--allow-url-host",
        action="append",
        default=[],
        type=lambda text: host_name(text).lower(),
        metavar="HOST",
        help="fetch by URL from this host whatever its address is; may be given several times",
    )
    parser.add_argument(
        "--drain-seconds",
        type=seconds,
        default=180.0,
        metavar="N",
        help="after SIGTERM, finish the requests under way for up to so long (default 180)",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of log lines (default text)")
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="default info: a line per request, never its text",
    )
    parser.add_argument(
        "--otel",
        type=http_url,
        metavar="ENDPOINT",
        help="send traces to this OpenTelemetry collector, as http://127.0.0.1:4318",
    )
    add_metering_arguments(parser)
    parser.add_argument(
        "--signing-key",
        type=OutputFile(),
        metavar="FILE",
        help="key that signs thinking kept by clients, made if missing (default: a new key each start)",
    )


def run(args: argparse.Namespace) -> int:
    from longsight.chat.template import ChatTemplate
    from longsight.engine import EngineDriver, SamplingDefaults
    from longsight.engine.probe import probe
    from longsight.model.built_in import EMBEDDED, is_built_in
    from longsight.server import logs
    from longsight.server.access import Sink
    from longsight.server.app import create_app
    from longsight.server.fetch import FetchLimits
    from longsight.server.file_store import FileStore
    from longsight.server.gate import RateGate
    from longsight.server.listen import listen
    from longsight.server.proxy import LOOPBACK, TrustedProxies, check_root_path
    from longsight.server.run import SHUTDOWN_SECONDS, Server
    from longsight.server.service import Service
    from longsight.server.signing import Signer
    from longsight.server.tracing import Tracer

    logs.configure(args.log_format, args.log_level)
    tls, root_path = tls_of(args), check_root_path(args.root_path)
    proxies = TrustedProxies.parse(LOOPBACK if args.forwarded_allow_ips is None else args.forwarded_allow_ips)
    tracer = Tracer.to(args.otel) if args.otel else None
    sinks: list[Sink] = [logs.AccessLog(), *([tracer] if tracer else [])]
    authenticator, limits = build_authenticator(args), load_limits(args)
    signer = Signer.from_file(args.signing_key) if args.signing_key else Signer()
    path = model_path(args)
    defaults, template = SamplingDefaults.from_checkpoint(path), ChatTemplate.from_checkpoint(path, args.chat_template)
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_sigterm())
        listener = stack.enter_context(listen(args.host, args.port))
        # Without a directory of its own, what clients upload is nobody's to keep when the server ends, and two servers
        # on one machine do not contend for one place.
        files_dir = args.files_dir or Path(stack.enter_context(TemporaryDirectory(prefix="longsight-files-")))
        files = stack.enter_context(FileStore(files_dir, limits.files()))
        meter = stack.enter_context(open_meter(args))
        loaded = load(path, args)
        probe(loaded.model)
        engine = build_engine(loaded, args, args.max_running)
        built_in = is_built_in(args.model)
        model_id = args.model_id or (BUILT_IN_ID if built_in else path.resolve().name)
        driver = EngineDriver(engine, max_queue=args.max_queue)
        service = Service(
            driver,
            loaded.tokenizer,
            model_id,
            template,
            defaults,
            chat_max_tokens=defaults.chat_tokens(engine.max_model_len, built_in=built_in),
            aliases=tuple(args.alias),
            reasoning_format=args.reasoning_format,
            meter=meter,
            files=files,
            fetch_limits=FetchLimits(
                allow_private=args.allow_private_urls, allowed_hosts=frozenset(args.allow_url_host)
            ),
            body_limit=limits.body_bytes,
            limits=limits,
            gate=RateGate(limits),
            authenticator=authenticator,
            signer=signer,
            built_in=(args.model or EMBEDDED) if built_in else None,
        )
        urls = Urls.of(listener, tls=tls is not None, root_path=root_path)
        announce(urls, model_id, loaded, engine, as_text=args.log_format == "text")
        if authenticator is None and not args.host.startswith("127.") and args.host not in ("localhost", "::1"):
            log.warning(f"anyone who reaches {args.host} may use this server; --auth or --api-key asks for a key")
        if warning := limits.floor_warning(engine.max_model_len):
            log.warning(warning)
        try:
            app = create_app(service, sinks, trusted_proxies=proxies, root_path=root_path)
            server = Server(app, driver, drain_seconds=args.drain_seconds, tls=tls)
            server.run(sockets=[listener])
        finally:
            driver.close(SHUTDOWN_SECONDS)
            if tracer is not None:
                tracer.close()
    return 0


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that what it holds is given back."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_authenticator(args: argparse.Namespace) -> Authenticator | None:
    """What checks API keys, as the flags or the environment say; None: nobody is asked for one."""
    from longsight.server.auth import StaticKey

    key, database = args.api_key or os.environ.get("LONGSIGHT_API_KEY"), args.auth or os.environ.get("LONGSIGHT_AUTH")
    static = StaticKey(key) if key else None
    if not database:
        return static
    from longsight.server.keys import KeyStore
    from longsight.server.stored_keys import StoredKeys

    return StoredKeys(KeyStore(database), static)


def load_limits(args: argparse.Namespace) -> Limits:
    """Rates are limits of API keys: where no key is asked for, they are off unless the file or a flag sets them."""
    from longsight.server.limits import Limits

    base: dict[str, int | None] = {}
    if not any((args.auth, args.api_key, os.environ.get("LONGSIGHT_AUTH"), os.environ.get("LONGSIGHT_API_KEY"))):
        base = {"rpm": None, "tpm": None}
    if args.max_body is not None:
        base["body_bytes"] = args.max_body
    return Limits.load(args.limits, args.limit, **base)


def announce(urls: Urls, model_id: str, loaded: Loaded, engine: Engine, *, as_text: bool) -> None:
    """Say where what is served can be reached, and how much of it there is."""
    model, pages = loaded.model, engine.pages.total
    if not as_text:
        fields = {
            "model": model_id,
            "url": urls.openai,
            "page": urls.page,
            "anthropic_url": urls.anthropic,
            "weight_bytes": model.weight_bytes,
            "backend": f"{model.backend.NAME} ({model.backend_reason})",
            "max_model_len": engine.max_model_len,
            "pages": pages,
        }
        log.info("serving", extra={"fields": fields})
        return
    elsewhere = "\n             and every other address of this machine, by which others reach it"
    print(
        f"longsight: serving {model_id} on {urls.openai}\n"
        f"  page       {urls.page}   chat and microscope, for a browser{elsewhere if urls.every_address else ''}\n"
        f"  OpenAI     {urls.openai}   base URL for OpenAI's clients; the model is {model_id!r}\n"
        f"  Anthropic  {urls.anthropic}   base URL for Anthropic's clients and Claude Code\n"
        f"  docs       {DOCS}; of the API: {urls.root}/openapi.json\n"
        f"  weights {model.weight_bytes / 2**20:,.0f} MiB in {str(model.dtype).removeprefix('torch.')}; "
        f"backend {model.backend.NAME} ({model.backend_reason})\n"
        f"  up to {engine.max_model_len:,} tokens per request; cache {pages:,} pages, "
        f"{pages * engine.page_bytes / 2**20:,.0f} MiB, {pages * model.config.block_size:,} tokens",
        file=sys.stderr,
        flush=True,
    )
