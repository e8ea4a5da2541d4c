"""nats-backpressure: judges how close each JetStream subject is to overload, and says so before it is.

The floors, from the door down; imports only ever go downwards (tests/test_floors.py is the drawing):

    cli        the door: arguments in, text out
    main       the roof: settings become edges and a service; the life of the process
    service    the loops: sweep (observe), ledger (step), perform (do what follows)
    edges      the world, one outside thing per file: connection, consumer_info, advisories, events, state_store, ...
    tape       what was observed, written down and judged again
    client     what gateways and consumers import; demo: all of them together, as processes
    answers    what is said to whoever asks, from what the service knows
    ports      what the service asks of the world; settings, wire: what people and programs write and read
    core       the judgement, pure: signals -> latches -> status -> changes -> step
"""

__version__ = "0.1.0"
