"""A gateway in Flask: its requests are answered with 503 and Retry-After while their subject is overloaded."""

import os
import signal
import sys
from contextlib import suppress

from flask import Flask, Response, request

from nats_backpressure.client import Refusal, ThreadedClient

SUBJECTS = {"decide": "beamline.router.v1.decide"}
"""By the endpoint, which is the name of the view function."""

backpressure = ThreadedClient(os.environ["NATS_URL"], SUBJECTS.values())
app = Flask(__name__)


@app.before_request
def refuse() -> Response | None:
    subject = SUBJECTS.get(request.endpoint or "")
    if subject is None or (admission := backpressure.admit(subject)):
        return None
    refusal = Refusal.of(admission)
    return Response(refusal.body, refusal.status_code, refusal.headers, content_type=refusal.content_type)


@app.post("/v1/decide")
def decide() -> tuple[str, int]:
    return "accepted", 202


if __name__ == "__main__":  # in production: gunicorn --threads 8 flask_gateway:app
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with suppress(KeyboardInterrupt), backpressure:
        app.run(port=int(sys.argv[1]), threaded=True)
