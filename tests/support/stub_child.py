"""A process for a supervisor that serves nothing: `stub_child.py VARIABLE FOLDER`; VARIABLE names its control pipe.

Files in FOLDER control its behaviour: `hangs` (it is not ready while the file is there), `fails`, `crashes`, `lingers`
(it ignores the request to stop). SIGTERM has it retire. It imports nothing of the project, so that it starts at
once.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

pipe = socket.socket(fileno=int(os.environ[sys.argv[1]]))
folder = Path(sys.argv[2])


def retire(number: int, frame: object) -> None:
    """Drain and end."""
    pipe.sendall(b"retiring\n")
    raise SystemExit(0)


signal.signal(signal.SIGTERM, retire)
pipe.settimeout(0.01)
while (folder / "hangs").exists():
    try:
        pipe.recv(100)
    except TimeoutError:
        continue
    raise SystemExit(0)  # asked to stop
pipe.settimeout(None)
if (folder / "fails").exists():
    pipe.sendall(b'failed ["a new version with a mistake", ""]\n')
    raise SystemExit(1)
pipe.sendall(f"ready stub.{os.getpid()}!\n".encode())
(folder / f"{os.getpid()} is ready").touch()
if (folder / "crashes").exists():
    os.kill(os.getpid(), signal.SIGSEGV)
pipe.recv(100)
while (folder / "lingers").exists():
    time.sleep(60)
