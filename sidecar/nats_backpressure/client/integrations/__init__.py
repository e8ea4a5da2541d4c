"""What fits the client into one framework or library each; imported by name by users of that library."""
