"""A service on asyncio and nothing else: answers over HTTP, in pieces as they come (server-sent events).

`python examples/asyncio_service.py [MODEL.gguf [PORT]]`, then `curl -N 'http://127.0.0.1:8080/?q=Who+are+you'`

Answers are made one after the other. Whoever waits in line holds up nobody; who hangs up is not answered any further.
"""

import asyncio
import contextlib
import json
import sys
from urllib.parse import parse_qs, urlsplit

import edgellm

HEAD = "HTTP/1.1 {}\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"
MISTAKES = (LookupError, ValueError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError)


async def answer(model: edgellm.Model, question: str, writer: asyncio.StreamWriter) -> None:
    """Cancelling this task cancels the answer."""
    try:
        stream = model.achat([{"role": "user", "content": question}], max_tokens=300)
        writer.write(HEAD.format("200 OK").encode())
        async for event in stream:
            writer.write(f"data: {json.dumps({'text': event.text})}\n\n".encode())
            await writer.drain()  # waits for a slow reader, while the model goes on
        end = {"finish_reason": (await stream).finish_reason}
    except edgellm.QueueFullError:
        return writer.write(HEAD.format("503 Service Unavailable").encode())
    except edgellm.EdgeLLMError as error:
        end = {"error": str(error)}
    writer.write(f"data: {json.dumps(end)}\n\n".encode())


async def serve(model: edgellm.Model, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout=10)  # 64 KiB at most
        question = parse_qs(urlsplit(head.split(b" ")[1].decode("ascii")).query)["q"][0]
        tasks = [asyncio.create_task(answer(model, question, writer)), asyncio.create_task(reader.read())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # read() ends when the client hangs up
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    except MISTAKES:
        writer.write(HEAD.format("400 Bad Request").encode())
    writer.close()


async def main(path: str = "", port: str = "8080") -> None:
    with await asyncio.to_thread(edgellm.load, path or None, max_queue=100) as model:
        server = await asyncio.start_server(lambda r, w: serve(model, r, w), "127.0.0.1", int(port))
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/?q=Hello", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:3]))
