"""API keys in a database: made, listed, disabled and deleted by `longsight keys`, looked up by the server.

A key is `lsk_<id>_<secret>`. The database has the id and a SHA-256 of the secret, which is 256 random bits: nobody can
guess those at any speed, so a slow hash, made for passwords that people choose, would protect nothing and cost every
request its time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from longsight.ops import LongsightError
from longsight.server.identity import SCOPES, Caller

PREFIX = "lsk"
ID_HEX, SECRET_HEX = 12, 64
DEFAULT_SCOPES = ("chat", "files", "usage")

TABLE = sa.Table(
    "api_keys",
    sa.MetaData(),
    sa.Column("id", sa.String(ID_HEX), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("organisation", sa.String(200), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("models", sa.JSON, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),  # Unix seconds, as `expires`
    sa.Column("expires", sa.BigInteger),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("rpm", sa.BigInteger),
    sa.Column("tpm", sa.BigInteger),
    sa.Column("concurrency", sa.BigInteger),
)


class KeyStoreError(LongsightError):
    """The database cannot be used, or a key cannot be made or found as asked."""


@dataclass(frozen=True)
class NewKey:
    """What a key is to be. models: patterns (shell style). expires: Unix seconds. rpm, tpm, concurrency: its own limits
    instead of the server's."""

    name: str
    organisation: str = "default"
    scopes: Sequence[str] = DEFAULT_SCOPES
    models: Sequence[str] = ("*",)
    expires: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for scope in self.scopes:
            if scope not in SCOPES:
                raise KeyStoreError(f"the scope {scope!r} is unknown; there are {', '.join(SCOPES)}")
        for what, value in (("name", self.name), ("organisation", self.organisation)):
            if not value.strip() or len(value) > 200:
                raise KeyStoreError(f"the {what} is {value!r}; it must have 1 to 200 characters")
        for what, number in (("rpm", self.rpm), ("tpm", self.tpm), ("concurrency", self.concurrency)):
            if number is not None and not 1 <= number < 2**63:
                raise KeyStoreError(f"{what} is {number}; it must be a whole number of at least 1")
        if not self.models or not all(self.models):
            raise KeyStoreError(f"the models are {list(self.models)}; give at least one pattern, as '*' or 'MiniMax-*'")


@dataclass(frozen=True)
class Key(NewKey):
    """A key as the database has it."""

    id: str = ""
    hash: str = field(default="", repr=False)
    created: int = 0
    disabled: bool = False

    def matches(self, secret: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(self.hash, digest(secret))

    def state(self, now: float) -> str:
        if self.disabled:
            return "disabled"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    def caller(self) -> Caller:
        return Caller(
            self.id,
            self.organisation,
            frozenset(self.scopes),
            tuple(self.models),
            self.rpm,
            self.tpm,
            self.concurrency,
            self.name,
        )


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def split(text: str) -> tuple[str, str] | None:
    """The id and the secret of what looks like a key of ours; None of anything else."""
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != PREFIX or len(key_id) != ID_HEX or len(secret) != SECRET_HEX or not (key_id + secret).isalnum():
        return None
    return key_id, secret


def database_url(text: str) -> sa.URL:
    """An SQLAlchemy URL as it is; anything else is the path of an SQLite file."""
    try:
        return make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except sa.exc.ArgumentError:
        raise KeyStoreError(
            "the key database's URL cannot be read; write a path, or as postgresql+psycopg://user:password@host/database"
        ) from None


class KeyStore:
    """The keys of one database. Every method asks the database; use it from any thread."""

    def __init__(self, database: str, *, create: bool = False) -> None:
        """create: make the SQLite file and the table where they don't exist; else both must."""
        url = database_url(database)
        self.name = url.render_as_string(hide_password=True) if "://" in database else database
        if url.get_backend_name() == "sqlite" and not create and not Path(url.database or "").is_file():
            raise KeyStoreError(f"there is no key database {self.name}; make one: {self.make_one(database)}")
        with self._explained():
            self._engine = sa.create_engine(url, pool_pre_ping=True)
            if create:
                TABLE.metadata.create_all(self._engine)
            elif not sa.inspect(self._engine).has_table(TABLE.name):
                raise KeyStoreError(f"{self.name} has no table of keys; make one: {self.make_one(self.name)}")

    @staticmethod
    def make_one(database: str) -> str:
        return f"longsight keys create NAME --auth {database}"

    def create(self, new: NewKey) -> tuple[Key, str]:
        """A new key, and its text, which nobody can read again."""
        secret = secrets.token_hex(SECRET_HEX // 2)
        key = Key(
            **vars(new),
            id=secrets.token_hex(ID_HEX // 2),
            hash=digest(secret),
            created=int(time.time()),
            disabled=False,
        )
        row = {column.name: getattr(key, column.name) for column in TABLE.columns}
        with self._explained(), self._engine.begin() as connection:
            connection.execute(TABLE.insert(), {**row, "scopes": list(key.scopes), "models": list(key.models)})
        return key, f"{PREFIX}_{key.id}_{secret}"

    def find(self, key_id: str) -> Key | None:
        with self._explained(), self._engine.connect() as connection:
            row = connection.execute(TABLE.select().where(TABLE.c.id == key_id)).mappings().first()
        return _key(row) if row is not None else None

    def all(self) -> list[Key]:
        """Oldest first."""
        with self._explained(), self._engine.connect() as connection:
            rows = connection.execute(TABLE.select().order_by(TABLE.c.created, TABLE.c.id)).mappings().all()
        return [_key(row) for row in rows]

    def disable(self, key_id: str, disabled: bool = True) -> None:
        self._change(key_id, TABLE.update().where(TABLE.c.id == key_id).values(disabled=disabled))

    def delete(self, key_id: str) -> None:
        self._change(key_id, TABLE.delete().where(TABLE.c.id == key_id))

    def close(self) -> None:
        self._engine.dispose()

    def _change(self, key_id: str, statement: sa.Update | sa.Delete) -> None:
        with self._explained(), self._engine.begin() as connection:
            if connection.execute(statement).rowcount == 0:
                raise KeyStoreError(f"{self.name} has no key {key_id!r}; `longsight keys list` shows what it has")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Any database's trouble in one line, without its password."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            cause = getattr(error, "orig", None) or error
            raise KeyStoreError(f"the key database {self.name} cannot be used: {cause}") from error


def _key(row: Any) -> Key:
    return Key(**{**row, "scopes": tuple(row["scopes"]), "models": tuple(row["models"])})
