"""Every row. The migrations are the schema's truth; a test compares the two.

Lists of sample ids may be long, so they are loaded only where they are looked at.

Ids are text: a type prefix and a UUIDv4 (`ureq_…`), which tells a reader what he holds and an outsider nothing.
"""

import service.access.tables  # noqa: F401 — rows of this schema, too; it takes no more than the base
from service.tables.base import *  # noqa: F403
from service.tables.ledger import *  # noqa: F403
from service.tables.registry import *  # noqa: F403
from service.tables.requests import *  # noqa: F403
from service.tables.results import *  # noqa: F403
from service.tables.webhooks import *  # noqa: F403
