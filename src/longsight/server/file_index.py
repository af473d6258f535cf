"""What is known of each stored file, in SQLite. A file exists from the moment its row is committed until it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    create_engine,
    delete,
    insert,
    or_,
    select,
)

METADATA = MetaData()
FILES = Table(
    "files",
    METADATA,
    # Ids are random; this keeps the order of arrival.
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", BigInteger, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("purpose", String, nullable=False),
    Column("filename", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("media_type", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=True, index=True),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True)
class StoredFile:
    """media_type: told from the bytes; application/octet-stream if they are no image or video.

    created_at, expires_at: seconds since 1970; expires_at is None for a file that is kept until it is deleted.
    """

    id: int
    owner: str
    purpose: str
    filename: str
    bytes: int
    media_type: str
    created_at: int
    expires_at: int | None


COLUMNS = [FILES.c[name] for name in StoredFile.__dataclass_fields__]


class FileIndex:
    """Safe to call from several threads; every call is one transaction."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(f"sqlite:///{path}")
        METADATA.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    def add(self, file: StoredFile) -> None:
        """Raises sqlalchemy.exc.IntegrityError if the id is taken."""
        with self._engine.begin() as connection:
            connection.execute(insert(FILES).values(asdict(file)))

    def get(self, owner: str, file_id: int, now: float) -> StoredFile | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(*COLUMNS).where(_of(owner, file_id), _alive(now))).one_or_none()
        return None if row is None else StoredFile(**row._mapping)

    def list(
        self, owner: str, now: float, *, purpose: str | None, after: int | None, limit: int | None, newest_first: bool
    ) -> Sequence[StoredFile] | None:
        """The owner's files in order of arrival, those behind `after`; None if there is no such file to be behind."""
        order = FILES.c.sequence
        query = select(*COLUMNS).where(FILES.c.owner == owner, _alive(now))
        if purpose is not None:
            query = query.where(FILES.c.purpose == purpose)
        with self._engine.connect() as connection:
            if after is not None:
                place = connection.execute(select(order).where(_of(owner, after))).scalar()
                if place is None:
                    return None
                query = query.where(order < place if newest_first else order > place)
            rows = connection.execute(query.order_by(order.desc() if newest_first else order).limit(limit))
            return [StoredFile(**row._mapping) for row in rows]

    def remove(self, owner: str, file_id: int, now: float) -> bool:
        """Whether there was such a file."""
        with self._engine.begin() as connection:
            return connection.execute(delete(FILES).where(_of(owner, file_id), _alive(now))).rowcount > 0

    def remove_expired(self, now: float) -> Sequence[int]:
        """The ids of the files whose time is over, which are then forgotten."""
        with self._engine.begin() as connection:
            return (
                connection.execute(delete(FILES).where(FILES.c.expires_at <= now).returning(FILES.c.id)).scalars().all()
            )

    def sizes(self) -> dict[int, int]:
        """Of every file: its id and its bytes."""
        with self._engine.connect() as connection:
            return {row.id: row.bytes for row in connection.execute(select(FILES.c.id, FILES.c.bytes))}

    def forget(self, file_id: int) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(FILES).where(FILES.c.id == file_id))


def _of(owner: str, file_id: int) -> ColumnElement[bool]:
    return and_(FILES.c.owner == owner, FILES.c.id == file_id)


def _alive(now: float) -> ColumnElement[bool]:
    return or_(FILES.c.expires_at.is_(None), FILES.c.expires_at > now)
