"""What makes a page reusable: a digest over everything that its keys and values depend on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b

# 16 bytes: among 2^32 pages two different ones share a digest with probability 2^-65, far below that of a memory error.
DIGEST_SIZE = 16


def digest_of(parent: bytes, tokens: array[int], extra: bytes = b"") -> bytes:
    """The digest of a full page: `parent` is that of the page before it, `extra` whatever else its keys depend on."""
    return blake2b(
        parent + len(extra).to_bytes(4, "little") + extra + tokens.tobytes(), digest_size=DIGEST_SIZE
    ).digest()


class PageChain:
    """The digests of one request's pages, worked out as its tokens come.

    tokens(start, stop): the request's token ids, int32. salt: keeps requests apart that may not share.
    media: (position, digest) of each piece of media content, ascending; its placeholder tokens alone do not tell it.
    """

    def __init__(
        self,
        tokens: Callable[[int, int], array[int]],
        block_size: int,
        *,
        salt: bytes = b"",
        media: Sequence[tuple[int, bytes]] = (),
    ) -> None:
        self.tokens, self.block_size = tokens, block_size
        self.root = blake2b(salt, digest_size=DIGEST_SIZE, person=b"longsight page").digest()
        self.stored = 0  # pages of the request that the cache has seen
        self._media = list(media)
        self._digests: list[bytes] = []

    def extra(self, page: int) -> bytes:
        """What page `page` depends on besides its tokens and the pages before it."""
        first = page * self.block_size
        return b"".join(
            (at - first).to_bytes(4, "little") + digest
            for at, digest in self._media
            if first <= at < first + self.block_size
        )

    def digest(self, page: int) -> bytes:
        """The digest of page `page`, all of whose tokens must be known; -1 gives the root."""
        if page < 0:
            return self.root
        while len(self._digests) <= page:
            i = len(self._digests)
            tokens = self.tokens(i * self.block_size, (i + 1) * self.block_size)
            self._digests.append(digest_of(self.digest(i - 1), tokens, self.extra(i)))
        return self._digests[page]
