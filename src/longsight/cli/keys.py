"""`longsight keys`: make, list, disable and delete API keys."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from longsight.cli.numbers import positive
from longsight.cli.paths import KEY_SCHEMES, Database

if TYPE_CHECKING:
    from longsight.server.keys import Key, KeyStore

EPILOG = """\
examples:
  longsight keys create alice --auth keys.db         # a key for chat, files and usage, of all models
  longsight keys create ci --auth keys.db --organisation acme --scope chat --model 'MiniMax-*' --expires 30d --rpm 60
  longsight keys create ops --auth keys.db --scope admin
  longsight keys list --auth keys.db
  longsight keys disable 3f9a51c07b2e --auth keys.db  # a running server stops taking it within seconds
  longsight keys delete 3f9a51c07b2e --auth keys.db

then:
  longsight serve --auth keys.db

`create` prints the key on standard output, this once: the database has only a hash of it. The database is a file, made
when the first key is, or any that SQLAlchemy knows, as postgresql+psycopg://user@host/database. LONGSIGHT_AUTH may say
which instead of --auth.

scopes: chat (generate), files (upload and read), usage (what was used and is left), root (messages of the role root),
admin (metrics and administration).
"""
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "keys",
        help="make, list, disable and delete API keys",
        description="Make, list, disable and delete the API keys that `longsight serve --auth` asks for.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    create = actions.add_parser("create", help="make a key and show it, once", description="Make a key and show it.")
    create.add_argument("name", metavar="NAME", help="what to call it: a person, a program")
    create.add_argument(
        "--organisation", default="default", metavar="NAME", help="whose files and bills (default: default)"
    )
    create.add_argument(
        "--scope",
        action="append",
        metavar="SCOPE",
        help="chat, files, usage, root or admin; may be repeated (default: chat, files and usage)",
    )
    create.add_argument(
        "--model", action="append", metavar="PATTERN", help="models it is for, as 'MiniMax-*'; may be repeated (all)"
    )
    create.add_argument("--expires", type=expiry, metavar="WHEN", help="in 90m, 12h, 30d, 4w; or on 2027-01-31")
    create.add_argument("--rpm", type=positive, metavar="N", help="requests a minute, instead of the server's limit")
    create.add_argument("--tpm", type=positive, metavar="N", help="tokens a minute, instead of the server's limit")
    create.add_argument("--concurrency", type=positive, metavar="N", help="requests at once, instead of the server's")
    show = actions.add_parser("list", help="show all keys", description="Show all keys; never their secrets.")
    disable = actions.add_parser(
        "disable", help="stop taking a key", description="Stop taking a key; --undo takes it again."
    )
    disable.add_argument("--undo", action="store_true", help="take it again")
    delete = actions.add_parser("delete", help="forget a key", description="Forget a key for good.")
    for action in (disable, delete):
        action.add_argument("id", metavar="ID", help="as `longsight keys list` shows it")
    for action in (create, show, disable, delete):
        action.add_argument(
            "--auth",
            type=Database(KEY_SCHEMES),
            metavar="DB",
            help="path or SQLAlchemy URL of the keys (default: LONGSIGHT_AUTH)",
        )


def expiry(text: str) -> int:
    """'30d' from now, or the start of a day in UTC -> Unix seconds."""
    if match := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return int(time.time()) + int(match[1]) * UNITS[match[2]]
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is not a time; write 90m, 12h, 30d, 4w or a date as 2027-01-31"
        raise argparse.ArgumentTypeError(message) from None
    seconds = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    if seconds <= time.time():
        raise argparse.ArgumentTypeError(f"{text!r} is over already")
    return seconds


def run(args: argparse.Namespace) -> int:
    from longsight.server.keys import KeyStore, KeyStoreError

    database = args.auth or os.environ.get("LONGSIGHT_AUTH")
    if not database:
        raise KeyStoreError("which database? give --auth keys.db, or set LONGSIGHT_AUTH")
    store = KeyStore(database, create=args.action == "create")
    try:
        ACTIONS[args.action](store, args)
    finally:
        store.close()
    return 0


def _create(store: KeyStore, args: argparse.Namespace) -> None:
    from longsight.server.keys import DEFAULT_SCOPES, NewKey

    key, text = store.create(
        NewKey(
            args.name,
            args.organisation,
            tuple(dict.fromkeys(args.scope or DEFAULT_SCOPES)),
            tuple(dict.fromkeys(args.model or ["*"])),
            args.expires,
            args.rpm,
            args.tpm,
            args.concurrency,
        )
    )
    print(text)
    print(f"the key {key.id} for {key.name}: keep it safe, it is not shown again", file=sys.stderr)


def _list(store: KeyStore, args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("id", "name", "organisation", "may do", "expires", "state"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "state"))
    for key in store.all():
        table.add_row(*_row(key))
    Console().print(table)


def _row(key: Key) -> list[str]:
    from rich.markup import escape

    limits = {"rpm": key.rpm, "tpm": key.tpm, "concurrency": key.concurrency}
    may = [", ".join(key.scopes), *([f"models {', '.join(key.models)}"] if tuple(key.models) != ("*",) else [])]
    may += [f"{name} {value:,}" for name, value in limits.items() if value is not None]
    expires = "never"
    if key.expires is not None:
        expires = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    cells = [key.id, key.name, key.organisation, "\n".join(may), expires, key.state(time.time())]
    return [escape(cell) for cell in cells]


def _disable(store: KeyStore, args: argparse.Namespace) -> None:
    store.disable(args.id, not args.undo)
    print(f"{args.id} is {'taken again' if args.undo else 'disabled'}")


def _delete(store: KeyStore, args: argparse.Namespace) -> None:
    store.delete(args.id)
    print(f"{args.id} is deleted")


ACTIONS: dict[str, Callable[[KeyStore, argparse.Namespace], None]] = {
    "create": _create,
    "list": _list,
    "disable": _disable,
    "delete": _delete,
}
