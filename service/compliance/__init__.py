"""What the law wants to know of a request: clocks, grounds, answers, and the questions that an auditor asks."""
