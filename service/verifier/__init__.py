"""The offline verifier: checks what Expunge published with the standard library and `cryptography`, and nothing else.

It imports no other part of Expunge, opens no database and no connection, and can be read in one sitting. Exit statuses:
0 good, 1 tampering found, 2 cannot decide (something needed is missing), 3 wrong usage.
"""
