# SPDX-License-Identifier: MIT
"""The C tests on a whole emulated aarch64 machine with a kernel of its own, by hand: `make aarch64-machine`.

qemu-user, in which `make aarch64` runs, has no restartable sequences, no resident pages and no subreaper.
Here Debian's arm64 kernel boots in qemu-system-aarch64 with the programs in its initial file system, so
all of them run. The host orders stores as x86 does: what only the weaker order of aarch64 shows is not seen.

Kernel, libc and busybox come by apt from the sources that this machine already has, into the build directory;
the list of this machine's packages is not changed. Wanted: Debian with qemu-system-arm, cpio,
gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOOLS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "aarch64-linux-gnu-strip": "binutils-aarch64-linux-gnu",
    "cpio": "cpio",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
SKIPPED = 77  # as in test_c.py
TIMEOUT_S = 1800
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
ip link set lo up
uname -srm
cd /tmp
for name in $(cat /names); do
    timeout {TIMEOUT_S} /tests/$name > /tmp/output 2>&1
    status=$?
    [ $status = 0 ] && tail -n 1 /tmp/output || tail -n 20 /tmp/output
    echo "RESULT $name $status"
done
poweroff -f
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def packages(here: Path) -> Path:
    """Debian's kernel, libc and busybox for arm64, unpacked below `here`. What is there already stays."""
    root = here / "debian"
    if (root / "complete").exists():
        return root
    for folder in ("lists/partial", "archives/partial", "debs"):
        (here / "apt" / folder).mkdir(parents=True, exist_ok=True)
    (here / "apt/status").touch()
    private = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State": here / "apt",
        "Dir::State::status": here / "apt/status",
        "Dir::Cache": here / "apt",
    }
    options = [word for name, value in private.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", *options, "--quiet", "update")
    depends = run("apt-cache", *options, "depends", "linux-image-arm64").splitlines()
    kernel = next(line.split()[-1] for line in depends if "Depends:" in line)
    run("apt-get", *options, "--quiet", "download", kernel, "libc6", "busybox-static", cwd=here / "apt/debs")
    for deb in sorted((here / "apt/debs").glob("*.deb")):
        run("dpkg-deb", "-x", deb, root)
    (root / "complete").touch()
    return root


def first_files(here: Path, debian: Path, build: Path, names: Sequence[str]) -> Path:
    """The initial file system: busybox, libc, the programs, and an init that runs them."""
    root = here / "root"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "dev", "proc", "sys", "tmp", "tests", "lib"):
        (root / folder).mkdir(parents=True)
    shutil.copy(debian / "bin/busybox", root / "bin")
    for library in (debian / "lib/aarch64-linux-gnu").glob("*.so*"):
        shutil.copy(library, root / "lib")
    for name in names:
        run("aarch64-linux-gnu-strip", "-o", root / "tests" / name, build / name)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "names").write_text("\n".join(names))
    files = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        ["cpio", "--create", "--format=newc", "--quiet"],
        cwd=root,
        input=files.encode(),
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    image = here / "initial.gz"
    image.write_bytes(gzip.compress(archive, 1))
    return image


def boot(kernel: Path, image: Path, nr_cpus: int) -> dict[str, int]:
    """Runs the machine to its end, shows what it says, and gives each program's exit status."""
    machine = [
        "-M",
        "virt",
        "-cpu",
        "neoverse-n1",
        "-smp",
        str(nr_cpus),
        "-m",
        "3G",
        "-nic",
        "none",
        "-nographic",
        "-no-reboot",
    ]
    started = [
        "-kernel",
        str(kernel),
        "-initrd",
        str(image),
        "-append",
        "console=ttyAMA0 rdinit=/init panic=-1 loglevel=2",
    ]
    results = {}
    with subprocess.Popen(
        ["qemu-system-aarch64", *machine, *started],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
    ) as qemu:  # fmt: skip
        assert qemu.stdout
        for line in qemu.stdout:
            print(line.rstrip(), flush=True)
            word, *rest = line.split() or [""]
            if word == "RESULT":
                results[rest[0]] = int(rest[1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, help="a build directory of `make aarch64`")
    parser.add_argument("names", nargs="*", help="test programs, all if none is named")
    parser.add_argument("--cpus", type=int, default=2, help="of the emulated machine (2)")
    args = parser.parse_args()
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        sys.exit(f"wanted: {' '.join(missing)}")
    programs = args.build / "tests/core"
    names = args.names or sorted(path.stem for path in Path(__file__).parent.glob("test_*.c"))
    if unknown := [name for name in names if not (programs / name).is_file()]:
        sys.exit(f"not in {programs}: {' '.join(unknown)}")
    here = args.build.absolute() / "machine"
    debian = packages(here)
    kernel = next((debian / "boot").glob("vmlinuz-*"))
    results = boot(kernel, first_files(here, debian, programs, names), args.cpus)
    failed = [name for name in names if results.get(name) not in (0, SKIPPED)]
    skipped = [name for name in names if results.get(name) == SKIPPED]
    print("skipped:", *skipped)
    print("failed:", *failed)
    print(f"{len(names) - len(failed) - len(skipped)} of {len(names)} passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
