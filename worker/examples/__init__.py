"""Example models and data small enough to ship: what the demo and the tests run on."""
