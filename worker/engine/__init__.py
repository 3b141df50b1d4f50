"""The machine room: reads a job directory, unlearns or verifies, writes its answer. No queue, no rows, no network."""
