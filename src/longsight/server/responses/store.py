"""Responses that are kept, so that a later request can go on from them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from longsight.server.errors import ApiError

MAX_BYTES = 256 * 2**20
MAX_COUNT = 10_000
OVERHEAD = 512  # bytes of an entry, and of each item's id, besides the JSON: about


@dataclass(frozen=True, slots=True)
class Stored:
    """One response. owner: the organisation it belongs to. input: the JSON list of this request's own items.
    response: the JSON object as the client got it. previous: the response that it goes on from. item_ids: of the items
    that it put out."""

    id: str
    owner: str
    previous: str | None
    input: bytes
    response: bytes
    item_ids: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.input) + len(self.response) + OVERHEAD * (1 + len(self.item_ids))

    def input_items(self) -> list[Any]:
        items: list[Any] = json.loads(self.input)
        return items

    def output_items(self) -> list[Any]:
        output: list[Any] = json.loads(self.response)["output"]
        return output


class ResponseStore:
    """In memory, and gone with the process. Over its bounds, those that nobody used for longest go first; a response
    that is larger than all of it is not kept. Nobody sees what another organisation has stored."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_count: int = MAX_COUNT) -> None:
        self.max_bytes, self.max_count, self.bytes = max_bytes, max_count, 0
        self._entries: OrderedDict[str, Stored] = OrderedDict()
        self._by_item: dict[str, str] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Stored) -> bool:
        """False if it is too large to be kept."""
        if entry.size > self.max_bytes or not self.max_count:
            return False
        with self._lock:
            self._entries[entry.id] = entry
            self.bytes += entry.size
            self._by_item.update(dict.fromkeys(entry.item_ids, entry.id))
            while self.bytes > self.max_bytes or len(self._entries) > self.max_count:
                self._remove(next(iter(self._entries)))
        return True

    def get(self, owner: str, id: str, param: str | None = None) -> Stored:
        """Raises ApiError 404 for an id that is unknown, forgotten, or another's."""
        with self._lock:
            return self._get(owner, id, param)

    def delete(self, owner: str, id: str) -> None:
        with self._lock:
            self._get(owner, id, None)
            self._remove(id)

    def chain(self, owner: str, id: str, param: str) -> Sequence[Stored]:
        """The response and all that it goes on from, the oldest first. The last used of them is the oldest: without
        it the others are of no use, so it is the last to be forgotten."""
        found: list[Stored] = []
        at: str | None = id
        with self._lock:
            while at is not None:
                found.append(self._get(owner, at, param))
                at = found[-1].previous
        return found[::-1]

    def item(self, owner: str, id: str, param: str) -> Any:
        """One item of a stored response's output."""
        with self._lock:
            entry = self._entries.get(self._by_item.get(id, ""))
        for item in entry.output_items() if entry is not None and entry.owner == owner else ():
            if item["id"] == id:
                return item
        raise ApiError(
            404,
            f"{param} refers to {id!r:.80}, which is in no stored response",
            type="invalid_request_error",
            code="item_not_found",
            param=param,
        )

    def _get(self, owner: str, id: str, param: str | None) -> Stored:
        entry = self._entries.get(id)
        if entry is None or entry.owner != owner:
            raise ApiError(
                404,
                f"there is no stored response {id!r:.80}; responses are kept in memory, the newest of them only, "
                'and not where "store" is false',
                type="invalid_request_error",
                code="previous_response_not_found" if param else "response_not_found",
                param=param,
            )
        self._entries.move_to_end(id)
        return entry

    def _remove(self, id: str) -> None:
        entry = self._entries.pop(id)
        self.bytes -= entry.size
        for item in entry.item_ids:
            self._by_item.pop(item, None)
