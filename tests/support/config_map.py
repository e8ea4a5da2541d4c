"""A ConfigMap's volume, as kubelet makes and changes it."""

from __future__ import annotations

from pathlib import Path

FILE = "config.yaml"


def put_config_map(directory: Path, revision: int, text: str) -> Path:
    """Put this text in place; its file. It is in a new directory `..N`, and the link `..data` is renamed over the old
    one. The file itself, a link to `..data/config.yaml`, stays as it is."""
    data, link = directory / f"..{revision}", directory / "..data"
    before = link.resolve() if link.exists() else None
    data.mkdir(parents=True)
    (data / FILE).write_text(text)
    new = directory / "..data_tmp"
    new.symlink_to(data.name)
    new.rename(link)
    if before is None:
        (directory / FILE).symlink_to(f"..data/{FILE}")
    else:
        (before / FILE).unlink()
        before.rmdir()
    return directory / FILE
