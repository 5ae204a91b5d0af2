"""A pod of a job that is heard, and yet too slow for the others: they tell of it and go on without it."""
import ctypes
import os
import queue
import threading

from harness import *
from pod_returns import returns

SEIZE, INTERRUPT, ALL = 0x4206, 0x4207, 0x40000000  # of ptrace(2) and waitpid(2)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def hold(pids):
    """Stops the thread that computes, and no other: its process still answers. Whoever ends it sees it end."""
    held = queue.Queue()

    def trace():
        for request in (SEIZE, INTERRUPT):
            if libc.ptrace(request, pids[0], None, None) != 0:
                held.put(os.strerror(ctypes.get_errno()))
                return
        held.put(None)
        while os.WIFSTOPPED(os.waitpid(pids[0], ALL)[1]):
            pass

    threading.Thread(target=trace, daemon=True).start()
    error = held.get()
    check(error is None, "ptrace:", error)


def test_a_pod_that_is_slow_is_told_of_and_comes_back():
    returns("streaming", hold, 6, said="is slow and is waited for since")


if __name__ == "__main__":
    main()
