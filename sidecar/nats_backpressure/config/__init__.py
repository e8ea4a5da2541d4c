"""Text, files and environment in; frozen settings out. Every mistake is reported with its path."""
