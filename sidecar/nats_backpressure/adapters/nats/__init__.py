"""Everything that talks to NATS and JetStream. What the files share is listed in tests/test_architecture.py."""
