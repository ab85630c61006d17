"""Run a program in a network of its own, where addresses of the internet and of clouds are this machine's.

Started below `unshare --net --mount`, see `COMMAND`; what follows its first argument, a file of hosts, is run.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys

SIOCSIFADDR, SIOCSIFFLAGS, IFF_UP = 0x8916, 0x8914, 1

HOSTS = {
    "public.example": "93.184.216.34",
    "more.public.example": "93.184.216.34",
    "tools.public.example": "93.184.216.34",
    "other.example": "93.184.216.35",
    "internal.example": "10.1.2.3",
    "metadata.example": "169.254.169.254",
}

COMMAND = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--net", "--mount")


def _address(interface: str, address: str) -> bytes:
    inet = struct.pack("HH4s8s", socket.AF_INET, 0, socket.inet_aton(address), b"")
    return struct.pack("16s16s", interface.encode(), inet)


def up() -> None:
    """Have the loopback, and every address of HOSTS, in a network that has nothing yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        for number, address in enumerate(sorted(set(HOSTS.values()))):
            fcntl.ioctl(control, SIOCSIFADDR, _address(f"lo:{number + 1}", address))


def main() -> None:
    hosts, *command = sys.argv[1:]
    up()
    with open(hosts, "w") as file:
        file.write("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
