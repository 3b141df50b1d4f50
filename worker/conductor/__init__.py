"""The queue room: takes a request, prepares a job directory, runs the engine as a child, publishes what it proved."""
