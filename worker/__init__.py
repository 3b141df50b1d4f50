"""The worker: `conductor` moves requests, `engine` runs the models, `contract` is the doorway between them."""
