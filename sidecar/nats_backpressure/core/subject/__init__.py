"""One subject's state and the one function that moves it. Pure."""
