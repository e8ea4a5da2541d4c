"""nats-backpressure: computes how close each JetStream subject is to overload, and publishes it before it is.

The folders, from the top down; imports only ever go downwards (`tests/test_architecture.py` holds the rules):

    cli        the commands: arguments in, text out          demo     a full example run on a real server, as processes
    app        settings become adapters and a service; start and stop of the process
    adapters   external systems, one per file: NATS, Prometheus, HTTP probes, logs
    queries    answers to requests, from the state in memory
    recording  what was observed, written to a file, and evaluated again
    runtime    the loops: read the servers, feed the core, carry out what it decides
    core       the evaluation, pure: signals -> status -> admission, and the one step that moves a subject's state
    policy     what the marks are and who may set them, pure
    config     files and environment -> frozen settings
    protocol   the contract with other programs; a leaf      client   what gateways and consumers import
"""

__version__ = "0.1.0"
