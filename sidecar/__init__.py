"""A sidecar that tells gateways and consumers when a NATS JetStream consumer is about to drown."""

__version__ = "0.1.0"
