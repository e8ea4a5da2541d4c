"""A gateway in Django: its requests are answered with 503 and Retry-After while their subject is overloaded."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import make_server

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from nats_backpressure.client import Refusal, ThreadedClient

SUBJECTS = {"decide": "beamline.router.v1.decide"}
"""By the name of the view in `urlpatterns`."""

backpressure = ThreadedClient(os.environ["NATS_URL"], SUBJECTS.values())


class Backpressure:
    """The first of MIDDLEWARE that has a `process_view`."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_view(self, request: HttpRequest, *view: Any) -> HttpResponse | None:
        subject = SUBJECTS.get(request.resolver_match.view_name)
        if subject is None or (admission := backpressure.admit(subject)):
            return None
        refusal = Refusal.of(admission)
        return HttpResponse(
            refusal.body, status=refusal.status_code, headers=refusal.headers, content_type=refusal.content_type
        )


def decide(request: HttpRequest) -> HttpResponse:
    return HttpResponse("accepted", status=202)


urlpatterns = [path("v1/decide", decide, name="decide")]

if __name__ == "__main__":
    settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.Backpressure"], ALLOWED_HOSTS=["127.0.0.1"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with suppress(KeyboardInterrupt), backpressure:  # in production: gunicorn, which needs neither
        make_server("127.0.0.1", int(sys.argv[1]), get_wsgi_application()).serve_forever()
