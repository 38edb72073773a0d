"""What stands between the sandbox and model-written code: `python -m`, never imported by a run.

Reads its orders from argv as JSON, shuts itself in, runs box/main.py by a fresh interpreter in a
child, and writes to the report file how the child ended and the picture that it left. Only the
standard library, since it starts anew for each snippet. Linux.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from selfloop.engines.sandbox_filter import install

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
RDONLY, NOSUID, NODEV, BIND, REC, PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/fonts")
"""What programs need to start; nothing else of /etc, no /home, /root, /proc or /sys."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1",
}


def main(orders: dict[str, Any]) -> None:
    """Isolate, run, report."""
    LIBC.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: nobody is left behind when the parent dies
    report = orders["report"]
    home = Path(orders["home"])
    try:
        inside, box = _namespaces(orders, home) if orders["level"] == "namespaces" else (
            None, home / "given")
        child = os.fork()
    except OSError as error:
        _write(report, {"failed": f"{error.filename or error.strerror}: {os.strerror(error.errno)}"
                        if error.errno else str(error)})
        return
    if child == 0:
        _run(orders, inside, box)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    picture, why = _picture(box / orders["picture"], orders["bytes"])
    _write(report, {"code": code, "cpu": used.ru_utime + used.ru_stime, "why": why}, picture)


def _write(report: int, found: dict[str, Any], picture: bytes = b"") -> None:
    with os.fdopen(report, "wb") as file:
        file.write(json.dumps(found).encode() + b"\n" + picture)


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "", what)


# -- a file system, a network and processes of its own -------------------------------------------

def _namespaces(orders: dict[str, Any], home: Path) -> tuple[Path, Path]:
    """(the new root, its writable folder as seen from here). Raises OSError where not permitted."""
    user, group = os.geteuid(), os.getegid()
    _check(LIBC.unshare(NEWUSER | NEWNS | NEWNET | NEWPID | NEWIPC | NEWUTS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {user} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {group} 1")
    _mount("none", "/", None, REC | PRIVATE)
    root = home / "root"
    _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "size=4m,mode=755")
    for path in dict.fromkeys((*SYSTEM, *orders["prefixes"])):
        _show(root, path)
    box = root / "box"
    for folder in (box, root / "dev", root / "tmp"):
        folder.mkdir(exist_ok=True)
    _read_only(root)
    _mount("tmpfs", root / "dev", "tmpfs", NOSUID, "size=64k,mode=755")
    for device in DEVICES:
        if os.path.exists(device):
            _show(root, device)
    _mount("tmpfs", box, "tmpfs", NOSUID | NODEV, f"size={orders['disk']},nr_inodes=4096,mode=700")
    shutil.copytree(home / "given", box, dirs_exist_ok=True)
    return root, box


def _mount(what: str, where: str | Path, kind: str | None, flags: int, options: str = "") -> None:
    _check(LIBC.mount(what.encode(), os.fsencode(where), kind and kind.encode(),
                      ctypes.c_ulong(flags), options.encode()), f"mount {where}")


def _show(root: Path, path: str) -> None:
    """Make a file or folder of this machine visible below the new root, at its own path."""
    if not os.path.lexists(path):
        return
    inside = root / path.lstrip("/")
    if os.path.lexists(inside):
        return  # below something that is already shown
    inside.parent.mkdir(parents=True, exist_ok=True)
    if os.path.islink(path):
        inside.symlink_to(os.readlink(path))
        return
    if os.path.isdir(path):
        inside.mkdir()
    else:
        inside.touch()
    _mount(path, inside, None, BIND | REC)


def _read_only(root: Path) -> None:
    attributes = struct.pack("QQQQ", RDONLY | NOSUID, 0, 0, 0)
    _check(LIBC.syscall(442, -100, os.fsencode(root), 0x8000, attributes, len(attributes)),
           "mount_setattr")  # 0x8000: AT_RECURSIVE, Linux 5.12


# -- only some files of the real file system ------------------------------------------------------

def _landlock(readable: list[str], box: Path) -> None:
    """Landlock (Linux 5.13): read and execute `readable`, do anything in `box`, no more."""
    abi = LIBC.syscall(444, None, 0, 1)
    if abi < 1:
        raise OSError(ctypes.get_errno(), "", "landlock")
    everything = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    ruleset = LIBC.syscall(444, struct.pack("Q", everything), 8, 0)
    # execute, read a file, list a folder
    for path, rights in [*((p, 0b1101) for p in readable), (str(box), everything)]:
        if not os.path.exists(path):
            continue
        own = rights if os.path.isdir(path) else rights & 0b111
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _check(LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", own, place), 0),
               f"landlock {path}")
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        place = os.open(device, os.O_PATH | os.O_CLOEXEC)
        _check(LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", 0b110, place), 0),
               f"landlock {device}")
    _check(LIBC.prctl(38, 1, 0, 0, 0), "no_new_privs")
    _check(LIBC.syscall(446, ruleset, 0), "landlock_restrict_self")


# -- the child ------------------------------------------------------------------------------------

def _run(orders: dict[str, Any], inside: Path | None, box: Path) -> None:
    """Never returns: becomes the interpreter that runs main.py."""
    try:
        LIBC.prctl(1, 9, 0, 0, 0)
        os.closerange(3, 4096)
        place = str(box)
        if inside is not None:
            os.chroot(inside)
            place = "/box"
        os.chdir(place)
        for capability in range(64):
            LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: root is no longer root
        if orders["level"] == "landlock":
            _landlock([*SYSTEM, *orders["prefixes"], *DEVICES], box)
        limits = {resource.RLIMIT_AS: orders["memory"], resource.RLIMIT_CPU: orders["cpu"],
                  resource.RLIMIT_FSIZE: orders["disk"], resource.RLIMIT_NOFILE: 64,
                  resource.RLIMIT_CORE: 0}
        if inside is not None:  # counted for this namespace alone
            limits[resource.RLIMIT_NPROC] = 128
        for which, most in limits.items():
            resource.setrlimit(which, (most, most))
        install(LIBC)
        own = {**ENVIRONMENT, "HOME": place, "TMPDIR": place, "MPLCONFIGDIR": place}
        os.execve(orders["python"], [orders["python"], "-X", "utf8", "main.py"], own)
    except BaseException as error:
        os.write(2, f"sandbox: {error}\n".encode())
    os._exit(126)


def _picture(path: Path, most: int) -> tuple[bytes, str]:
    """A plain file's bytes, read without following a link; else why not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"", ""
    except OSError as error:
        return b"", f"{path.name} cannot be read: {error.strerror}"
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        return b"", f"{path.name} is a link, a folder or no plain file"
    with os.fdopen(descriptor, "rb") as file:
        if about.st_size > most:
            return b"", f"{path.name} has {about.st_size:,} bytes, over the limit of {most:,}"
        return file.read(most), ""


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
