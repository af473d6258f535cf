"""The keys of a database as the server asks for them: remembered for a few seconds."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable

from anyio import to_thread

from longsight.server.auth import RefusedKeyError, StaticKey
from longsight.server.errors import unauthorized, unavailable
from longsight.server.identity import Caller
from longsight.server.keys import Key, KeyStore, KeyStoreError, digest, split

CACHE_SECONDS = 3.0  # for so long a key may still work after it was disabled
CACHED_KEYS = 4096


class StoredKeys:
    """The keys of a database, each read once in CACHE_SECONDS at most; beside them, if given, one static key."""

    def __init__(
        self, store: KeyStore, static: StaticKey | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._static, self._clock = store, static, clock
        self._cache: OrderedDict[str, tuple[float, Key | None]] = OrderedDict()  # id -> (when it was read, key)
        self._reads: dict[str, asyncio.Task[Key | None]] = {}

    async def caller(self, token: str) -> Caller:
        if self._static is not None and self._static.matches(token):
            return await self._static.caller(token)
        parts = split(token)
        key = await self._find(parts[0]) if parts is not None else None
        # An unknown id costs a comparison too, so that the time says nothing about which ids exist.
        known = key.matches(parts[1]) if key is not None and parts is not None else hmac.compare_digest("", digest(""))
        if key is None or not known:
            raise unauthorized("the API key is not known here")
        state = key.state(time.time())
        if state != "active":
            raise RefusedKeyError(key.caller(), state)
        return key.caller()

    async def _find(self, key_id: str) -> Key | None:
        now = self._clock()
        read, key = self._cache.get(key_id, (None, None))
        if read is not None and now - read < CACHE_SECONDS:
            return key
        # Requests that come while the key is being read wait for the same answer; one that leaves takes none with it.
        task = self._reads.get(key_id)
        if task is None:
            task = self._reads[key_id] = asyncio.create_task(self._read(key_id, now))
        try:
            return await asyncio.shield(task)
        except KeyStoreError as error:
            raise unavailable("the API keys cannot be read now") from error

    async def _read(self, key_id: str, now: float) -> Key | None:
        try:
            key = await to_thread.run_sync(self._store.find, key_id)
            self._cache[key_id] = (now, key)
            self._cache.move_to_end(key_id)
            if len(self._cache) > CACHED_KEYS:
                self._cache.popitem(last=False)
            return key
        finally:
            del self._reads[key_id]
