"""The contract with every other program: subjects, messages, requests and replies. A leaf: imports nothing of ours."""
