"""The API's own description turned against it: Schemathesis makes the calls, a real server answers them."""
