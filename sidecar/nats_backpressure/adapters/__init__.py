"""External systems, one per file. Adapters decide nothing, and no adapter imports another."""
