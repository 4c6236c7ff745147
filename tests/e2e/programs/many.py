"""COUNT echo connections to ADDRESS PORT that are all open at once, each with its own 64 KiB there and
back.
"""

import asyncio
import os
import sys


async def main(count: int, address: str, port: int) -> None:
    streams = await asyncio.gather(*(asyncio.open_connection(address, port) for _ in range(count)))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        data = os.urandom(1 << 16)
        writer.write(data)
        # No half-close: not every proxy knows what to do with one (test_faithful.py is about that).
        return await reader.readexactly(len(data)) == data

    same = await asyncio.gather(*(talk(*stream) for stream in streams))
    for _, writer in streams:
        writer.close()
    print(sum(same))


asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
