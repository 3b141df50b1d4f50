"""What the audit ledger's benchmark measures: appends, a million entries, a signature over 200 MB."""
