"""The Debian packages whose text the embedded model learns from, all of the main section of Debian 12.

Chosen for sentences that people like to read: commentary, stories and dialogue of games, handbooks, manuals. What a
package says of its licence is read from its copyright file; `licence` is given where a person had to read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MILLION = 1_000_000
PAGES = r"\.(html?|en|page|pod|md|txt|text)(\.gz)?$"
# Pages that hold lists instead of sentences, and what no reader looks for.
NEVER = re.compile(
    r"changelog|copyright|/NEWS|README\.Debian|_sources/|_static/|genindex|modindex|/search|/legal|/COPYING|releaselog"
    r"|delta\.pod|perl(hist|uniprops|toc|artistic|gpl|modlib|ko|jp|cn|tw)\.pod|(^|/)(index|toc|bookindex)\.html"
    r"|RelNotes|/c3ref/|/syntax/|/sql-|/biblio|/release-",
)


@dataclass(frozen=True)
class Source:
    """A package, which of its files to read, and how many characters of it at most."""

    package: str
    files: str = PAGES  # a regular expression searched in a file's path
    at_most: int = 4 * MILLION
    licence: str | None = None

    def takes(self, path: str) -> bool:
        return bool(re.search(self.files, path)) and not NEVER.search(path)


SWORD = r"/sword/modules/.*\.[bc]zz$"
WESNOTH = (
    "did",
    "dm",
    "dw",
    "ei",
    "httt",
    "l",
    "low",
    "nr",
    "sof",
    "sota",
    "sotbe",
    "thot",
    "trow",
    "tsg",
    "ttb",
    "utbs",
)

SOURCES = (
    Source("anarchism", r"/markdown/.*\.md(\.gz)?$"),
    Source("apache2-doc", r"/manual/en/.*\.html(\.gz)?$"),
    Source("apt-doc", r"(\.md|/guide\.html/.*\.html|/offline\.html/.*\.html)(\.gz)?$"),
    Source("aptitude-doc-en"),
    Source("abs-guide"),
    Source("debian-edu-doc-en", r"bookworm-manual\.html(\.gz)?$"),
    Source("debian-faq", r"\.en\.html(\.gz)?$"),
    Source("debian-handbook", r"/html/en-US/.*\.html(\.gz)?$"),
    Source("debian-history", r"/docs/.*\.en\.html(\.gz)?$|/docs/[a-z0-9-]*\.html(\.gz)?$"),
    Source("debian-kernel-handbook"),
    Source("debian-policy", r"\.html(\.gz)?$"),
    Source("debian-reference-en", r"\.en\.html(\.gz)?$"),
    Source("developers-reference"),
    Source("dict-foldoc", r"\.dict\.dz$", licence="GFDL-1.1+ without invariant sections"),
    Source("dict-wn", r"\.dict\.dz$"),
    Source("endless-sky-data", r"/data/.*\.txt$"),
    Source("exim4-doc-html"),
    Source("fai-doc"),
    Source("git-doc", r"\.html(\.gz)?$"),
    Source("gnome-user-docs", r"/help/C/.*\.page$"),
    Source("harden-doc", r"/html/en-US/.*\.html(\.gz)?$|/html/en/.*\.html(\.gz)?$"),
    Source("installation-guide-amd64", r"/en/.*\.html?(\.gz)?$"),
    Source("jargon-text", licence="public domain"),
    Source("libreoffice-help-en-us"),
    Source("live-manual-html", r"\.en\.html(\.gz)?$"),
    Source("maxima-doc", r"/html/.*\.html$"),
    Source("nethack-common"),
    Source("ntpsec-doc"),
    Source("nut-doc"),
    Source("perl-doc", r"\.pod$", 5 * MILLION),
    Source("postgresql-doc-15", r"\.html$"),
    Source("python3.11-doc", r"/html/(faq|howto|library|tutorial|reference|extending)/.*\.html$", 6 * MILLION),
    Source("rust-doc", r"/html/(book|edition-guide|embedded-book|nomicon|reference|cargo/guide)/.*\.html$"),
    Source("sqlite3-doc"),
    Source("sword-comm-mhcc", SWORD),
    Source("sword-comm-scofield", SWORD),
    Source("sword-comm-tdavid", SWORD),
    Source("sword-text-web", SWORD),
    *(Source(f"wesnoth-1.16-{campaign}", r"/campaigns/.*\.cfg$") for campaign in WESNOTH),
)

# Files taken as they are, by recipes.embedded.code.
RAW = (
    Source("libpython3.11-stdlib", r"\.py$", 3 * MILLION, licence="PSF-2.0"),
    Source("python3-django", r"\.py$", 2 * MILLION),
    Source("python3-numpy", r"\.py$", 2 * MILLION),
    Source("perl-modules-5.36", r"\.p[lm]$", 1 * MILLION),
    Source("libjs-jquery-ui", r"/jquery-ui\.js$", 1 * MILLION),
    Source("git-doc", r"\.(html|txt)$", 1 * MILLION),
    Source("sqlite3-doc", r"\.html$", 1 * MILLION),
    Source("apache2-doc", r"/manual/en/.*\.html(\.gz)?$", 1 * MILLION),
    Source("libboost1.74-dev", r"\.hpp$", 2 * MILLION),
)
