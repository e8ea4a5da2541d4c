"""The read side: answers to status, decision, history and policy queries, made from the state in memory."""
