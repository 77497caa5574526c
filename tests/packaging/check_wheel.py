"""Check the distributions of a checkout: ``python check_wheel.py [CHECKOUT] [--out FOLDER]``.

Builds the source distribution and the wheel from the checkout, and the wheel again from the source
distribution, with hatchling as installed here. Then:

- both wheels hold the same files with the same bytes;
- a wheel holds exactly the tracked files of moesim/ and of the folders linked into it (but not the
  README's pictures), as real files, next to its dist-info, so that nothing is installed under
  generic names;
- nothing that only a build or a run leaves behind is in them.

The checkout must have no changes that git does not know of.
"""

from __future__ import annotations

import argparse
import fnmatch
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

JUNK = ("*.tmp", "*.pyc", "*__pycache__*", "*.orig", "*.swp", "*~", "*.egg-info*", "*/.*")
SYMLINK = "120000"

NOT_INSTALLED = "moesim/reports/samples/"


def build(source: Path, out: Path, *kinds: str) -> None:
    """Run ``python -m build`` quietly; its output is shown when it fails."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")


def only(folder: Path, pattern: str) -> Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        sys.exit(f"expected one {pattern} in {folder}, found {len(files)}")
    return files[0]


def tracked(checkout: Path) -> set[str]:
    """Where every tracked file of the package lies in a wheel."""
    listing = subprocess.run(
        ["git", "ls-files", "--stage", "-z"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    modes = {}
    for entry in filter(None, listing.split("\0")):
        state, _, path = entry.partition("\t")
        modes[path] = state.split()[0]
    names = {path for path, mode in modes.items() if path.startswith("moesim/") and mode != SYMLINK}
    for path, mode in modes.items():
        if mode == SYMLINK and path.startswith("moesim/"):
            folder = (checkout / path).resolve().relative_to(checkout.resolve()).as_posix() + "/"
            names |= {f"{path}/{p.removeprefix(folder)}" for p in modes if p.startswith(folder)}
    return names


def contents(wheel: Path) -> dict[str, bytes]:
    """Bytes by name; RECORD only lists what is compared anyway."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            info.filename: archive.read(info)
            for info in archive.infolist()
            if not info.filename.endswith("/RECORD")
        }


def problems(checkout: Path, wheel: Path, again: Path, sdist: Path) -> list[str]:
    """Everything that is wrong, in words."""
    found = []
    first, second = contents(wheel), contents(again)
    for name in sorted(first.keys() ^ second.keys()):
        where = "checkout" if name in first else "source distribution"
        found.append(f"only in the wheel from the {where}: {name}")
    found += [
        f"differs between the two wheels: {name}"
        for name in sorted(first.keys() & second.keys())
        if first[name] != second[name]
    ]
    package = {name for name in first if ".dist-info/" not in name}
    expected = {name for name in tracked(checkout) if not name.startswith(NOT_INSTALLED)}
    found += [f"tracked but not in the wheel: {name}" for name in sorted(expected - package)]
    found += [f"in the wheel but not tracked: {name}" for name in sorted(package - expected)]
    with zipfile.ZipFile(wheel) as archive:
        found += [
            f"a link, not a file: {info.filename}"
            for info in archive.infolist()
            if stat.S_ISLNK(info.external_attr >> 16)
        ]
    roots = {name.split("/")[0] for name in first}
    foreign = {root for root in roots if root != "moesim" and not root.endswith(".dist-info")}
    found += [f"installs outside moesim/: {root}" for root in sorted(foreign)]
    with tarfile.open(sdist) as archive:
        names = [*first, *(member.name for member in archive.getmembers())]
    # A source distribution may carry the ignore file that hatchling itself reads.
    found += [
        f"junk: {name}"
        for name in sorted(set(names))
        if not name.endswith("/.gitignore") and any(fnmatch.fnmatch(name, p) for p in JUNK)
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--out", type=Path, help="keep the distributions in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch, "dist")
        build(options.checkout, out, "--sdist", "--wheel")
        sdist, wheel = only(out, "*.tar.gz"), only(out, "*.whl")
        unpacked = Path(scratch, "unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        build(only(unpacked, "*"), Path(scratch, "again"), "--wheel")
        again = only(Path(scratch, "again"), "*.whl")
        found = problems(options.checkout, wheel, again, sdist)
        print(f"{wheel.name}: {len(contents(wheel))} files, {wheel.stat().st_size / 1e6:.1f} MB")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
