"""A gateway in gRPC with threads: RESOURCE_EXHAUSTED, and when to try again, while the subject is overloaded."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc

from nats_backpressure.client import Refusal, ThreadedClient

SUBJECTS = {"/router.Router/Decide": "beamline.router.v1.decide"}
"""By the full name of the method."""


class Backpressure(grpc.ServerInterceptor):
    """Refuses a call of any kind before its request is read."""

    def __init__(self, client: ThreadedClient, subjects: Mapping[str, str]) -> None:
        self._client, self._subjects = client, subjects

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        call: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        subject = self._subjects.get(call.method)
        if subject is None or (admission := self._client.admit(subject)):
            return continuation(call)
        refusal = Refusal.of(admission)

        def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> None:
            # Clients whose retry policy has RESOURCE_EXHAUSTED wait as long before they try again (gRPC proposal A6).
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(1000 * refusal.retry_after)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal.detail)

        return grpc.stream_stream_rpc_method_handler(refuse)


def decide(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b"accepted"


if __name__ == "__main__":
    stopping = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stopping.set())
    with ThreadedClient(os.environ["NATS_URL"], SUBJECTS.values()) as backpressure:
        server = grpc.server(ThreadPoolExecutor(8), interceptors=[Backpressure(backpressure, SUBJECTS)])
        methods = {"Decide": grpc.unary_unary_rpc_method_handler(decide)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("router.Router", methods),))
        server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
        server.start()
        stopping.wait()
        server.stop(grace=5).wait()
