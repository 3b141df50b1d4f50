"""Everything that can be wrong with a request, as classes (`kinds`), and how it is answered (`answers`)."""

from service.errors.answers import *  # noqa: F403
from service.errors.kinds import *  # noqa: F403
