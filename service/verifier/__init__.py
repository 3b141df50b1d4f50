"""The offline verifier: needs `cryptography`, `rfc8785` and nothing else of ours; opens no connection, and writes nothing.

Exit statuses: 0 good, 1 tampering found, 2 cannot decide (something needed is missing), 3 wrong usage.
"""
