"""What hostile code can do in the sandbox: nothing that outlives it, and nothing outside."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
import zlib
from functools import cache
from pathlib import Path

import pytest

from selfloop.decoding import Limits
from selfloop.engines import sandbox_filter
from selfloop.engines.sandbox import LEVELS, Sandbox, level
from selfloop.roles import SelfloopError

pytestmark = pytest.mark.skipif(level()[0] is None, reason=level()[1])


def possible(at: str) -> bool:
    try:
        return Sandbox()._at(at, "print(1)", {}).ok
    except SelfloopError:
        return False


HERE = [at for at in LEVELS if level()[0] is not None and possible(at)]


@pytest.fixture(params=[*HERE[:1], *(pytest.param(a, marks=pytest.mark.slow) for a in HERE[1:])])
def at(request):
    """Runs code at each level that this machine permits."""
    def ran(code: str, files=None, **options):
        return Sandbox(**{"seconds": 5.0, **options})._at(request.param, code, files or {})
    ran.level = request.param
    return ran


def test_what_is_printed_and_drawn_comes_back(at):
    ran = at("print(open('in.txt').read() * 2)\nfrom PIL import Image\n"
             "Image.new('RGB', (4, 3), (9, 8, 7)).save('picture.png')", {"in.txt": b"ab"})
    assert ran.ok and ran.stdout == "abab\n" and ran.why == ""
    assert ran.picture.size == (4, 3) and ran.picture.getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize(("code", "reason", "why"), [
    ("1 / 0", "error", "ZeroDivisionError: division by zero"),
    ("raise SystemExit(3)", "error", "ended with status 3"),
    ("def", "error", "SyntaxError"),
    ("import os; os.abort()", "error", "ended by signal"),
    ("x = bytearray(3 << 30)", "memory", "needed more than"),
    ("import numpy; numpy.ones(1 << 29)", "memory", "needed more than"),
    ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory", "needed more than 300,000,000"),
    ("while True: print('x' * 1000)", "output", "printed more than 100,000 bytes"),
    ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output", "printed more than"),
])
def test_how_it_ends_is_told(at, code, reason, why):
    ran = at(code, memory=300_000_000)
    assert ran.reason == reason and why in ran.why, ran
    assert len(ran.stdout) + len(ran.stderr) <= 200_000 and ran.picture is None


@pytest.mark.parametrize("code", [
    "while True: pass",
    "import time; time.sleep(60)",
    "import os, time; os.close(1); os.close(2); time.sleep(60)",
    "import signal, time\nfor s in (1, 2, 3, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\n"
    "while True: pass",
    "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, "
    "args=(60,)).start()",
])
def test_endless_code_is_killed_whole(at, code):
    began, before = time.monotonic(), alive()
    ran = at(code, seconds=1.0)
    assert ran.reason == "timeout" and time.monotonic() - began < 4
    while left := alive() - before:  # a test beside this one may be running something, too
        assert time.monotonic() - began < 30, f"left behind: {left}"
        time.sleep(0.1)


def alive() -> set[str]:
    """Processes that run a snippet."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"main.py" in path.read_bytes() or b"sandbox_inside" in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("code", [
    "import os; os.fork()",
    "import os\nfor _ in range(100000):\n    try: os.fork()\n    except OSError: pass\n"
    "raise PermissionError",
    "import subprocess; subprocess.run(['/bin/ls'])",
    "import os; os.posix_spawn('/bin/ls', ['ls'], {})",
    "import multiprocessing as m; m.Process(target=print).start()",
    "import socket; socket.socket()",
    "import socket; socket.socket(socket.AF_UNIX)",
    "import urllib.request as u\ntry: u.urlopen('http://127.0.0.1:9')\n"
    "except OSError as e: raise PermissionError(e)",
    "import os; os.kill(1, 9)",
    "import os; os.kill(os.getppid(), 9)",
    "import os; os.setsid()",
    "import os; os.chroot('.')",
    "import os; os.chmod('main.py', 0o777)",
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.unshare(0x10000000): raise PermissionError(os.strerror(ctypes.get_errno()))",
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.syscall(425, 1, 0) < 0: raise PermissionError(os.strerror(ctypes.get_errno()))",
    "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
])
def test_what_is_not_permitted_is_refused(at, code):
    ran = at(code)
    assert ran.reason == "error", ran
    assert "PermissionError" in ran.why or "not permitted" in ran.why \
        or "not allowed" in ran.why, ran


def test_nobody_is_reached_through_the_network(at):
    """A listener of this machine, on every kind of address, hears nothing."""
    heard = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(1.5)

        def listen():
            with contextlib.suppress(TimeoutError):
                heard.append(server.accept())
        thread = threading.Thread(target=listen)
        thread.start()
        code = ("import ctypes, socket\nlibc = ctypes.CDLL(None)\n"  # past Python's own calls
                f"print(libc.socket(2, 1, 0))\nsocket.create_connection(('127.0.0.1', "
                f"{server.getsockname()[1]}))")
        ran = at(code)
        thread.join()
    assert ran.stdout == "-1\n" and ran.reason == "error" and not heard


def test_secrets_of_this_machine_are_not_there(at, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    home = Path.home() / ".sandbox-test-secret"
    home.write_text("s3cret")
    paths = [str(secret), str(home), "/etc/passwd", "/etc/shadow", "/proc/1/environ",
             "/proc/self/environ", f"/proc/{os.getpid()}/environ", "/proc/self/mem", __file__,
             str(Path(__file__).parent), str(Path.home()), "/proc", "/sys", "/var", "/home", "/run"]
    try:
        ran = at(f"""
import os
for path in {paths!r}:
    try:
        print('READ', path, os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError:
        pass
print(dict(os.environ))
""")
    finally:
        home.unlink()
    read = [line for line in ran.stdout.splitlines() if line.startswith("READ")]
    # folders that lead to the interpreter are there, with nothing else in them
    assert ran.ok and "s3cret" not in ran.stdout and home.name not in ran.stdout, ran
    assert all(Path(sys.prefix).is_relative_to(path) or Path(sys.base_prefix).is_relative_to(path)
               or line.endswith(" []") for line in read for path in line.split()[1:2]), read


def test_nothing_is_written_outside_its_folder(at, tmp_path):
    targets = [str(tmp_path / "x"), "/tmp/sandbox-test", "/usr/lib/sandbox-test", "/sandbox-test",
               str(Path.home() / "sandbox-test"), "/dev/shm/sandbox-test",
               str(Path(os.__file__).parent / "sandbox_test.py")]
    ran = at(f"for path in {targets!r}:\n"
             "    try:\n        open(path, 'w').write('x'); print('WROTE', path)\n"
             "    except OSError: pass\n"
             "open('mine', 'w').write('x')")
    assert ran.ok and "WROTE" not in ran.stdout, ran
    assert not any(os.path.exists(t) for t in targets)


def test_its_folder_is_bounded_and_gone_afterwards(at, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ran = at("open('big', 'wb').write(bytes(9 << 20))", disk=8 << 20)
    assert ran.reason == "error" and "OSError" in ran.why, ran
    assert list(tmp_path.iterdir()) == []
    if at.level == "namespaces":
        many = at("for i in range(99): open(str(i), 'wb').write(bytes(1 << 20))", disk=8 << 20)
        assert "No space left" in many.why


# -- the picture ----------------------------------------------------------------------------------

@cache
def png(width: int, height: int) -> bytes:
    """A black PNG of any size in few bytes."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(1 + (width + 7) // 8)) for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(
        ">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(
        b"IDAT", rows + packed.flush()) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("code", "why"), [
    ("import os; os.symlink('/etc/passwd', 'picture.png')", "picture.png"),
    ("import os; os.symlink('main.py', 'picture.png')", "picture.png"),
    ("import os; os.link('main.py', 'picture.png')", "is a link"),
    ("import os; os.mkdir('picture.png')", "is a link, a folder"),
    ("open('picture.png', 'wb').write(bytes(11_000_000))", "over the limit of 10,000,000"),
    ("open('picture.png', 'wb').write(b'<svg/>')", "not a picture"),
    ("import shutil; shutil.copyfile('bomb', 'picture.png')", "pixels"),
    ("import shutil; shutil.copyfile('torn', 'picture.png')", "picture.png"),
])
def test_a_picture_that_is_a_trick_is_refused(at, code, why):
    bomb = png(30_000, 30_000)
    assert len(bomb) < 200_000
    ran = at(code, {"bomb": bomb, "torn": png(64, 64)[:50]})
    assert ran.picture is None and ran.reason == "error" and why in ran.why, ran


def test_a_failing_snippet_may_still_have_drawn(at):
    ran = at("open('picture.png', 'wb').write(open('a', 'rb').read())\n1 / 0", {"a": png(8, 8)})
    assert ran.reason == "error" and ran.picture.size == (8, 8) and "division" in ran.why


def test_limits_of_the_picture_are_its_own(at):
    ran = at("open('p.png', 'wb').write(open('a', 'rb').read())", {"a": png(20, 20)},
             picture="p.png", picture_limits=Limits(pixels=399))
    assert ran.picture is None and "pixels" in ran.why


# -- what the caller may do wrong ------------------------------------------------------------------

@pytest.mark.parametrize(("make", "said"), [
    (lambda: Sandbox(picture="../x.png"), "plain file name"),
    (lambda: Sandbox(seconds=0), "above 0"),
    (lambda: Sandbox(least="none"), "expected one of namespaces, landlock"),
    (lambda: Sandbox()("1", {"../x": b""}), "file '../x'"),
    (lambda: Sandbox()("1", {"main.py": b""}), "other than main.py"),
])
def test_what_is_asked_wrongly_is_named(make, said):
    with pytest.raises(SelfloopError, match=said.replace(".", r"\.")):
        make()


def test_where_it_cannot_be_shut_in_nothing_is_run(monkeypatch, tmp_path):
    mark = tmp_path / "mark"
    for found in ((None, "no Linux"), ("landlock", "namespaces: unshare")):
        monkeypatch.setattr("selfloop.engines.sandbox.level", lambda found=found: found)
        with pytest.raises(SelfloopError, match="cannot shut code in as asked"):
            Sandbox(least="namespaces")(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()


def test_a_missing_interpreter_is_named():
    with pytest.raises(SelfloopError, match="python='/no/such/python'"):
        Sandbox(python="/no/such/python")("print(1)")


def test_the_filter_names_calls_as_this_kernels_headers_do():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    numbers = {int(n): name for name, n in (line.split()[1:3] for line in header.read_text()
               .splitlines() if line.startswith("#define __NR_"))}
    denied = {numbers.get(call[0]) for call in sandbox_filter.DENIED}
    assert {"__NR_socket", "__NR_fork", "__NR_vfork", "__NR_ptrace", "__NR_mount", "__NR_bpf",
            "__NR_io_uring_setup", "__NR_kill", "__NR_keyctl", "__NR_setns"} <= denied
    assert not {"__NR_read", "__NR_execve", "__NR_openat", "__NR_mmap", "__NR_exit_group",
                "__NR_rt_sigaction", "__NR_getrandom", "__NR_futex"} & denied
    assert numbers[sandbox_filter.CLONE[0]] == "__NR_clone"
    assert numbers[sandbox_filter.CLONE3[0]] == "__NR_clone3"
    assert numbers[sandbox_filter.TGKILL[0]] == "__NR_tgkill"
    assert numbers[sandbox_filter.PRLIMIT[0]] == "__NR_prlimit64"
