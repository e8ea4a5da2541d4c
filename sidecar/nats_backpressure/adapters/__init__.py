"""The outside world, one thing per file. Adapters decide nothing, and no adapter imports another."""
