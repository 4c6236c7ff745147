"""For each HOST PORT: what asyncio says, what a socket with a time limit says, and both names of the connection."""

import asyncio
import socket
import sys


async def main() -> None:
    for host, port in zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True):
        try:
            _, writer = await asyncio.open_connection(host, port)
            peer, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
            print(host, "connected", peer[:2], own[0])
            writer.close()
        except OSError as error:
            print(host, error)
        try:
            with socket.create_connection((host, port), timeout=20) as sock:
                print(host, "connected", sock.getpeername()[:2], sock.getsockname()[0])
        except OSError as error:
            print(host, error)


asyncio.run(main())
