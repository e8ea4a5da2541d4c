"""NATS and JetStream, one outside thing a file. They share connection, api, api_types and kv, and nothing else."""
