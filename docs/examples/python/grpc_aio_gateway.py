"""A gateway in gRPC with asyncio: RESOURCE_EXHAUSTED, and when to try again, while the subject is overloaded."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import grpc
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient, Refusal

log = logging.getLogger("gateway")
SUBJECTS = {"/router.Router/Decide": "beamline.router.v1.decide"}
"""By the full name of the method."""


class Backpressure(grpc.aio.ServerInterceptor):
    """Refuses a call of any kind before its request is read."""

    def __init__(self, client: BackpressureClient, subjects: Mapping[str, str]) -> None:
        self._client, self._subjects = client, subjects

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        call: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        subject = self._subjects.get(call.method)
        if subject is None or (admission := self._client.admit(subject)):
            return await continuation(call)
        refusal = Refusal.of(admission)

        async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            # Clients whose retry policy has RESOURCE_EXHAUSTED wait as long before they try again (gRPC proposal A6).
            wait = (("grpc-retry-pushback-ms", str(1000 * refusal.retry_after)),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal.detail, wait)

        return grpc.stream_stream_rpc_method_handler(refuse)


async def decide(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return b"accepted"


async def log_error(error: Exception) -> None:
    log.warning("NATS: %r", error)  # without a callback nats-py logs a traceback at each try


async def serve(port: int) -> None:
    stopping = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    nc = Client()
    connecting = asyncio.create_task(nc.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1, error_cb=log_error))
    async with BackpressureClient(nc) as backpressure:
        await backpressure.watch(SUBJECTS.values(), timeout=2)
        server = grpc.aio.server(interceptors=[Backpressure(backpressure, SUBJECTS)])
        methods = {"Decide": grpc.unary_unary_rpc_method_handler(decide)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("router.Router", methods),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await stopping.wait()
        await server.stop(grace=5)
    connecting.cancel()
    await nc.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
