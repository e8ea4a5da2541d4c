"""What was observed, written down, and judged again: recorder -> recording -> replay."""
