"""The system calls that code in the sandbox may not make, as a seccomp filter.

What is denied fails with EPERM, as for a user who lacks the right: sockets, new processes (threads
are allowed), signals to others, tracing, mounts and namespaces, shared memory that no limit counts,
io_uring (which makes calls past a filter), and changes of owner, mode and time of files. See
seccomp(2). Linux on x86-64 and aarch64.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Sequence

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> (its AUDIT_ARCH, its column in the tables)."""

DENIED: tuple[tuple[int | None, int | None], ...] = (
    # socket, connect, bind, listen, io_uring_setup
    (41, 198), (42, 203), (49, 200), (50, 201), (425, 425),
    # ptrace, process_vm_readv, process_vm_writev
    (101, 117), (310, 270), (311, 271),
    # kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_open, pidfd_send_signal, pidfd_getfd
    (62, 129), (200, 130), (129, 138), (297, 240), (434, 434), (424, 424), (438, 438),
    # fork, vfork, unshare, setns, setsid, setpgid
    (57, None), (58, None), (272, 97), (308, 268), (112, 157), (109, 154),
    # mount, umount2, pivot_root, chroot, move_mount, open_tree
    (165, 40), (166, 39), (155, 41), (161, 51), (429, 429), (428, 428),
    # fsopen, fsconfig, fsmount, fspick, mount_setattr
    (430, 430), (431, 431), (432, 432), (433, 433), (442, 442),
    # bpf, perf_event_open, keyctl, add_key, request_key, userfaultfd
    (321, 280), (298, 241), (250, 219), (248, 217), (249, 218), (323, 282),
    # init_module, finit_module, delete_module, kexec_load, kexec_file_load, reboot
    (175, 105), (313, 273), (176, 106), (246, 104), (320, 294), (169, 142),
    # swapon, swapoff, acct, quotactl, personality
    (167, 224), (168, 225), (163, 89), (179, 60), (135, 92),
    # shmget, msgget, semget, mq_open, memfd_create, memfd_secret
    (29, 194), (68, 186), (64, 190), (240, 180), (319, 279), (447, 447),
    # setrlimit, setpriority, sched_setscheduler, sched_setattr
    (160, 164), (141, 140), (144, 119), (314, 274),
    # chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat
    (90, None), (91, 52), (268, 53), (452, 452), (92, None), (93, 55), (94, None), (260, 54),
    # setxattr and removexattr, with their l and f forms
    (188, 5), (189, 6), (190, 7), (197, 14), (198, 15), (199, 16),
    # mknod, mknodat, name_to_handle_at, open_by_handle_at
    (133, None), (259, 33), (303, 264), (304, 265),
    # utime, utimes, utimensat, futimesat, settimeofday, clock_settime, iopl, ioperm
    (132, None), (235, None), (280, 88), (261, None), (164, 170), (227, 112), (172, None),
    (173, None),
)
"""Calls by their numbers on (x86-64, aarch64); None where there is no such call."""
CLONE, CLONE3, TGKILL, PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_NUMBER, _ARCH = 0, 4
_THREAD = 0x00010000
"""CLONE_THREAD: with it, clone makes a thread of this process."""


def program(machine: str, pid: int) -> bytes:
    """The filter for a process `pid`, as classic BPF instructions of 8 bytes each."""
    arch, column = MACHINES[machine]
    made = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":  # the x32 calls have numbers of their own
        made += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for call in DENIED:
        if (number := call[column]) is not None:
            made += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    # clone3 hides its flags in memory; where it does not exist, libc falls back to clone
    made += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _ENOSYS)]
    made += _only(CLONE[column], [(_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 1, 0, _THREAD)])
    made += _only(TGKILL[column], [(_LOAD, 0, 0, _argument(0)), (_EQUAL, 1, 0, pid)])
    made += _only(PRLIMIT[column], [(_LOAD, 0, 0, _argument(2)), (_EQUAL, 0, 2, 0),
                                    (_LOAD, 0, 0, _argument(2) + 4), (_EQUAL, 1, 0, 0)])
    made.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in made)


def _argument(index: int) -> int:
    """Where the low half of an argument lies (both machines are little-endian)."""
    return 16 + 8 * index


def _only(number: int, test: Sequence[tuple[int, int, int, int]]
          ) -> list[tuple[int, int, int, int]]:
    """Deny a call unless the test's last jump passes over the denial."""
    body = [*test, (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]


def install(libc: ctypes.CDLL) -> None:
    """Put this process and whatever it executes under the filter, for good. Raises OSError."""
    import os

    code = program(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    fprog = ctypes.create_string_buffer(head, len(head))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(fprog)), 0, 0):  # SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
