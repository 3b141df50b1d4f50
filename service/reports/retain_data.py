"""What training could look at to keep the rest, in the report's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.reports.figures import percent

MOST_NAMES = 60


def listed(names: Sequence[str]) -> str:
    """Names in a row, the last ones counted where there are many."""
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def in_words(retain: Mapping[str, Any] | None, class_names: Sequence[str]) -> str:
    """Nothing where the request chose none.

    Args:
        retain: as the row has it, classes by index.
        class_names: of the model, in index order.
    """
    if retain is None:
        return ""
    real, named = float(retain["real"]), [class_names[k] for k in retain["classes"]]
    of = listed(named) or "all classes that are neither forgotten nor set aside"
    share = "" if real == 1 else f"{percent(real)} "
    said = [f"{share}real images of {of}" if real > 0 else "no real images of retained classes"]
    apart = listed([class_names[k] for k in retain["proxy_classes"]])
    other = retain.get("proxy_dataset_id")
    if real < 1:
        proxies = [f"other classes, set aside: {apart}" if apart else "", f"another dataset: {other}" if other else ""]
        said += [f"in the place of the rest {' and '.join(filter(None, proxies))}"]
    elif apart:
        said += [f"set aside: {apart}"]
    return "; ".join(said)
