"""`method: "auto"`: which recipes are tried in turn, cheapest first, until a result passes the gate.

The ladders are data, by family and by what is forgotten, and a part of the catalogue. A request spells its own out when it is
made, so that it stays what it is when a later release changes them, and so that how many results may be verified in turn, among
which the chance of a false PASS is shared, is fixed before the first one is (ADR 13).
"""

from __future__ import annotations

import json
from functools import lru_cache

from service import catalogue
from service.catalogue import Json, Unit
from service.errors import InvalidParams, UnknownMethod
from service.requests.rungs import AUTO, LADDER

LONGEST_REMEMBERED = 4096
"""Of parameters as JSON, in characters."""
MOST_RUNGS = 3
"""Of a packaged ladder: each one makes every test of all of them stricter."""


def choose(family: str, wanted: str | None, params: Json, *, unit: Unit) -> tuple[str, Json]:
    """The method of a new request and its parameters, every value of them; of `auto` the parameters are the ladder.

    Raises:
        UnknownMethod: the family has no such method, or no ladder for what is to be forgotten.
        InvalidParams: see `catalogue.effective_params`; or there are some, of `auto`.
    """
    known = catalogue.get_catalogue()
    text = json.dumps(params)  # keeps apart what == does not: 1, 1.0 and true
    if len(text) > LONGEST_REMEMBERED:
        return _choose(family, wanted, params, unit)
    method, chosen = _remembered(catalogue.Same(known), family, wanted, text, unit)
    return method, json.loads(chosen)  # a copy: requests own their parameters


@lru_cache(maxsize=256)
def _remembered(_known: catalogue.Same, family: str, wanted: str | None, text: str, unit: Unit) -> tuple[str, str]:
    """Most requests say the same, and holding one against its schema is a tenth of what it costs to make."""
    method, params = _choose(family, wanted, json.loads(text), unit)
    return method, json.dumps(params)


def _choose(family: str, wanted: str | None, params: Json, unit: Unit) -> tuple[str, Json]:
    if wanted != AUTO:
        method = catalogue.choose_method(family, wanted)
        return method, catalogue.effective_params(method, family, params, unit=unit)
    ladder = catalogue.get_catalogue().ladders.get(family, {}).get(unit)
    if not ladder:
        what = "single samples" if unit == "sample" else "classes"
        raise UnknownMethod(f"there is no ladder of recipes to forget {what} for this family; name a method", pointer="/method")
    if params:
        raise InvalidParams("auto takes no parameters: each of its recipes has its own", pointer="/params")
    return AUTO, {LADDER: [_spelled_out(recipe, family, unit) for recipe in ladder]}


def _spelled_out(recipe: catalogue.RecipeEntry, family: str, unit: Unit) -> Json:
    params = catalogue.effective_params(recipe.method, family, {"preset": recipe.preset} if recipe.preset else {}, unit=unit)
    return {"method": recipe.method, "params": params}


def charged(policy: Json, rungs: int) -> Json:
    """A policy whose error budget is shared among so many results, or among more where it says so itself."""
    attempts = max(int(policy.get("attempts", 1)), rungs)
    return {**policy, "attempts": attempts} if attempts > 1 else policy
