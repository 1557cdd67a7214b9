"""Runs a program and ends it, with all that it started, when standard input does: so it never outlives us, however we end.

A file of the standard library alone, run by its path: `python -I _guard.py PROGRAM ARGUMENTS…`. Source: prctl(2),
PR_SET_PDEATHSIG, for the case that this process itself is killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

END_S = 10.0
"""Between asking and killing. vLLM's own wait for its workers is shorter."""
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # both may reach the whole group; the pipe decides
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def begin() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if library is not None:
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # no thread runs yet, so `preexec_fn` meets no lock that another one holds
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=begin)  # noqa: PLW1509
    threading.Thread(target=_watch, args=(process,), daemon=True).start()
    code = process.wait()
    _signal(process, signal.SIGKILL)  # what it left behind
    return code if code >= 0 else 128 - code


def _watch(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
