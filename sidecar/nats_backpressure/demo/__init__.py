"""The demo: a gateway, a router and a load generator as processes around a real NATS server and a sidecar."""
