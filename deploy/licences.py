"""Lists the licence of each part of an SBOM (CycloneDX, JSON); exits with 1 where one is missing or not permitted.

python deploy/licences.py build/sbom/nats-backpressure.cdx.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PERMITTED = {
    *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "PSF-2.0", "Python-2.0", "0BSD", "Unlicense"),
    *("MIT-0", "Zlib", "MPL-2.0"),
}
"""SPDX identifiers of licences that permit shipping in an image, with nothing to do but to list them."""
NAMES = {
    "Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
}
"""How packages spell some of them."""


def licences(component: dict[str, Any]) -> Iterator[str]:
    """SPDX identifiers, or the package's own words."""
    for entry in component.get("licenses", []):
        named = entry.get("license", {})
        text = entry.get("expression") or named.get("id") or named.get("name") or ""
        yield NAMES.get(text, text)


def permitted(component: dict[str, Any]) -> bool:
    """Whether one of its licences is permitted; an expression is where all that it demands are (`AND`), or one of
    those that it offers (`OR`)."""
    return any(_permits(expression) for expression in licences(component))


def _permits(expression: str) -> bool:
    choices = re.sub(r"[()]", "", expression).split(" OR ")
    return any(all(part.strip() in PERMITTED for part in choice.split(" AND ")) for choice in choices)


def main(file: Path) -> int:
    components = sorted(json.loads(file.read_text())["components"], key=lambda part: str(part["name"]).lower())
    for part in components:
        print(f"{part['name']:24} {part['version']:12} {' | '.join(dict.fromkeys(licences(part))) or '-'}")
    refused = [part["name"] for part in components if not permitted(part)]
    if refused:
        print(f"no licence that is permitted (deploy/licences.py): {', '.join(refused)}", file=sys.stderr)
    return 1 if refused or not components else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
