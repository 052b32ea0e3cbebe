"""Lets a client that blocks call the application here."""

import asyncio
import threading

import httpx


class InProcess(httpx.BaseTransport):
    """`before` are the first answers."""

    def __init__(self, app, before=()):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._inner = httpx.ASGITransport(app=app)
        self.before, self.seen = list(before), 0

    def handle_request(self, request):
        self.seen += 1
        if self.before:
            answer = self.before.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return asyncio.run_coroutine_threadsafe(self._ask(request), self._loop).result(10)

    async def _ask(self, request):
        content = request.read()
        inner = httpx.Request(request.method, request.url, headers=request.headers, content=content)
        answer = await self._inner.handle_async_request(inner)
        return httpx.Response(
            answer.status_code, headers=answer.headers, content=await answer.aread()
        )
