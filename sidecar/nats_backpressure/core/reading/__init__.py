"""Reading: which consumers may have crossed a mark, and when and how each stream is read. Pure."""
