"""Fetches one plain page with asyncio streams and writes the body to stdout."""

import asyncio
import sys
from urllib.parse import urlsplit


async def main(url: str) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.hostname}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    sys.stdout.buffer.write(answer.partition(b"\r\n\r\n")[2])


asyncio.run(main(sys.argv[1]))
