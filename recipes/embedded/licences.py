"""The licence that a Debian package's copyright file states, in a few words."""

from __future__ import annotations

import re

MACHINE_READABLE = re.compile(r"^Format(-Specification)?:", re.M)
AT_MOST = 6  # names of one file that are listed
# Looked for in files written for people; the first group, if any, is the version.
PHRASES = (
    ("public domain", r"public domain"),
    ("GFDL", r"(?:Free Documentation Licen[sc]e|GFDL)(?:.{0,80}?version (\d(?:\.\d)?))?"),
    ("AGPL", r"Affero General Public Licen[sc]e(?:.{0,80}?version (\d))?"),
    ("LGPL", r"(?:Lesser|Library) General Public Licen[sc]e(?:.{0,80}?version (\d(?:\.\d)?))?"),
    ("GPL", r"(?<!Lesser )(?<!Library )(?<!Affero )General Public Licen[sc]e(?:.{0,80}?version (\d))?"),
    ("GPL", r"\bGPL[ -]?v?(\d)"),
    ("Artistic", r"Artistic Licen[sc]e"),
    ("Apache", r"Apache Licen[sc]e(?:, version (\d\.\d))?"),
    ("MPL", r"Mozilla Public Licen[sc]e(?:.{0,20}?(\d\.\d))?"),
    ("CC-BY-SA", r"Attribution-Share ?Alike (\d\.\d)"),
    ("PSF", r"Python Software Foundation Licen[sc]e(?:.{0,20}?version (\d))?"),
    ("BSD", r"Redistribution and use in source and binary forms"),
    ("MIT", r"Permission is hereby granted, free of charge, to any person obtaining"),
    ("modified versions under the same notice", r"permission notice identical to this one"),
)
OR_LATER = re.compile(r"any later version|or later|or newer|\bv?\d\+")


def stated(text: str) -> str:
    """Names of licences, the one of most files first; "" where none is recognised.

    Machine-readable files name one for each group of files, and the packaging's own (debian/*) is left out; in others
    known phrases are looked for, which finds licences of the packaging as well.
    """
    names = _fields(text) if MACHINE_READABLE.search(text[:2000]) else _phrases(text)
    names = list(dict.fromkeys(names))
    more = len(names) - AT_MOST
    return "; ".join(names[:AT_MOST]) + (f"; and {more} more" if more > 0 else "")


def _fields(text: str) -> list[str]:
    groups = []
    for paragraph in re.split(r"\n\s*\n", text):
        files = re.search(r"^Files:((?:.*)(?:\n[ \t].*)*)", paragraph, re.M)
        licence = re.search(r"^Licen[sc]e:[ \t]*(\S.*)$", paragraph, re.M)
        if files and licence and not all(pattern.startswith("debian/") for pattern in files[1].split()):
            name = re.sub(r"^public-domain$", "public domain", licence[1].strip())
            groups.append(("*" not in files[1].split(), name))
    return [name for _, name in sorted(groups, key=lambda group: group[0])]


def _phrases(text: str) -> list[str]:
    text = re.sub(r"\s+", " ", text)
    found: list[tuple[int, str]] = []
    for name, phrase in PHRASES:
        for match in re.finditer(phrase, text, re.I):
            version = next((group for group in match.groups() if group), "")
            later = "+" if version and OR_LATER.search(text[match.start() : match.end() + 60]) else ""
            found.append((match.start(), f"{name}-{version}{later}" if version else name))
    # "GPL" or "GPL-2" says no more than "GPL-2+" beside it.
    names = [name for _, name in sorted(found)]
    return [name for name in names if not any(other.startswith((name + "-", name + "+")) for other in names)]
