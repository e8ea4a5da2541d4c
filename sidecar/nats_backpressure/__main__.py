"""`python -m sidecar` is the command."""

from nats_backpressure.cli import main

if __name__ == "__main__":
    main()
