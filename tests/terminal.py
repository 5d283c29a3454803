"""A terminal for tests: what a person sees of a process that writes to it."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from multiprocessing.context import BaseContext
from typing import Callable


def shown(processes: BaseContext, width: int, function: Callable, *args) -> list[str]:
    """The lines on a terminal of that width when a process with `function` has ended."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    process = processes.Process(
        target=_on_terminal, args=(os.ttyname(side), os.getcwd(), function, args)
    )
    process.start()
    parts: list[bytes] = []
    reader = threading.Thread(target=_read, args=(terminal, parts))
    reader.start()
    process.join()
    os.close(side)
    reader.join()
    os.close(terminal)
    return rendered(b"".join(parts).decode(), width)


def _read(terminal: int, parts: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # so Linux tells the end
        while part := os.read(terminal, 1 << 16):
            parts.append(part)


def _on_terminal(name: str, folder: str, function: Callable, args: tuple) -> None:
    os.chdir(folder)
    os.environ.pop("COLUMNS", None)
    terminal = os.open(name, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(terminal, stream)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1)
    function(*args)


def rendered(output: str, width: int) -> list[str]:
    """The lines of a terminal after `output`; a line that is too long goes on below as `↵…`."""
    rows, x, y = [[]], 0, 0
    for token in re.findall(r"\x1b\[.|[^\x1b]", output, re.DOTALL):
        if token == "\x1b[A":
            y -= 1
        elif token == "\r":
            x = 0
        elif token == "\n":
            y += 1
        else:
            if x == width:
                x, y, token = 0, y + 1, f"↵{token}"
            rows += [[] for _ in range(y + 1 - len(rows))]
            rows[y] += " " * (x + 1 - len(rows[y]))
            rows[y][x] = token
            x += 1
    return ["".join(row).rstrip() for row in rows]
