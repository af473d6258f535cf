"""Copy the web page's libraries from npm into `src/longsight/server/vendor/`, as they were published.

    python scripts/vendor_web.py            # what scripts/vendor_web/package-lock.json pins
    python scripts/vendor_web.py --check    # write nothing; fail if a file in the package is another one

To raise a version: edit scripts/vendor_web/package.json, run `npm install --package-lock-only` there, then this.
`vendor/manifest.json` says which package and version each file comes from, and its SHA-256. Needs npm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "scripts" / "vendor_web"
TARGET = ROOT / "src" / "longsight" / "server" / "vendor"
# package -> {file in the package: file here}. A "*" copies every match into the directory named.
FILES = {
    "markdown-it": {
        "dist/browser/markdown-it.esm.min.mjs": "markdown-it.mjs",
        "LICENSE": "LICENSE.markdown-it",
    },
    # Inside markdown-it's one file.
    "entities": {"LICENSE": "LICENSE.entities"},
    "linkify-it": {"LICENSE": "LICENSE.linkify-it"},
    "mdurl": {"LICENSE": "LICENSE.mdurl"},
    "punycode.js": {"LICENSE-MIT.txt": "LICENSE.punycode"},
    "uc.micro": {"LICENSE.txt": "LICENSE.uc.micro"},
    "dompurify": {
        "dist/purify.es.mjs": "purify.mjs",
        "LICENSE": "LICENSE.dompurify",
    },
    "@highlightjs/cdn-assets": {
        "es/highlight.min.js": "highlight.mjs",  # highlight.js's own choice of common languages
        "LICENSE": "LICENSE.highlight",
    },
    "katex": {
        "dist/katex.min.js": "katex.js",
        "dist/katex.min.css": "katex.css",
        "dist/fonts/*.woff2": "fonts",
        "LICENSE": "LICENSE.katex",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with what npm has, and write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory, "vendor")
        collect(Path(directory), made)
        if not check:
            shutil.rmtree(TARGET, ignore_errors=True)
            shutil.copytree(made, TARGET)
            print(f"{len(tree(TARGET))} files in {TARGET.relative_to(ROOT)}")
            return
        ours, theirs = tree(TARGET), tree(made)
        wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        sys.exit(f"not as published: {', '.join(wrong)}; run python scripts/vendor_web.py")
    print(f"{len(ours)} files are as published")


def collect(work: Path, target: Path) -> None:
    """Install the locked packages under `work` and copy their files to `target`."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LOCK / name, work)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True)
    manifest = {}
    for package, files in FILES.items():
        root = work / "node_modules" / package
        version = json.loads((root / "package.json").read_text())["version"]
        for pattern, name in files.items():
            for source in sorted(root.glob(pattern)):
                copy = f"{name}/{source.name}" if "*" in pattern else name
                (target / copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / copy)
                digest = hashlib.sha256(source.read_bytes()).hexdigest()
                manifest[copy] = {"package": f"{package}@{version}", "sha256": digest}
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def tree(root: Path) -> dict[str, bytes]:
    """Every file under `root`, by its path from there."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
