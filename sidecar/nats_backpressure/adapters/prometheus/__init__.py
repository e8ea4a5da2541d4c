"""Prometheus: what is measured, how it is counted, and how the state is collected at a scrape."""
