"""Everything breaks at random moments while requests come in; afterwards the tables and the store are counted."""
