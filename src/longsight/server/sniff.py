"""What a file is, told from its first bytes. The label a client gives is often wrong and never believed."""

from __future__ import annotations

HEAD_BYTES = 64  # enough for every signature below
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
VIDEO_TYPES = frozenset({"video/mp4", "video/x-msvideo", "video/quicktime", "video/x-matroska"})
NAMES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
    "video/mp4": "MP4",
    "video/x-msvideo": "AVI",
    "video/quicktime": "MOV",
    "video/x-matroska": "MKV",
}
# ISO media brands that say "a picture" or "sound only"; the same box opens MP4.
NOT_VIDEO = (b"hei", b"hev", b"mif", b"msf", b"avi", b"M4A", b"M4B", b"crx", b"jp2", b"jpx", b"jxl")
# What a QuickTime file older than the ftyp box begins with.
QUICKTIME_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def media_type(head: bytes) -> str | None:
    """The type of an image or video whose first bytes (HEAD_BYTES, or all) these are; None if it is neither."""
    box, brand = head[4:8], head[8:12]
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF"):
        return {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}.get(brand)
    if box == b"ftyp":
        if brand == b"qt  ":
            return "video/quicktime"
        return None if brand.startswith(NOT_VIDEO) or len(brand) < 4 else "video/mp4"
    if box in QUICKTIME_BOXES:
        return "video/quicktime"
    if head.startswith(b"\x1a\x45\xdf\xa3") and b"matroska" in head[:HEAD_BYTES]:
        return "video/x-matroska"
    return None


def spoken(types: frozenset[str]) -> str:
    """'JPEG, PNG, GIF, WEBP': types as people call them, for messages."""
    return ", ".join(name for kind, name in NAMES.items() if kind in types)
