"""The retained class that is nearest to a forgotten one, in judge features.

Shape suffixes: N images, D features.
"""

from __future__ import annotations

from worker.engine.electorate import MEMBERS
from worker.engine.errors import BadInput
from worker.engine.verifier import Env


def nearest_class(env: Env, forgotten: int) -> int:
    """The retained class whose training images lie nearest to a forgotten one's, on average, in judge features.

    Raises:
        BadInput: no class is retained, or the forgotten one has no training images.
        JudgeUnfit: see `Env.judge`.
    """
    data = env.dataset
    index = {k: data.train_of([k])[:MEMBERS] for k in (forgotten, *env.spec.retain_classes)}
    if len(index) < 2 or not len(index[forgotten]):
        raise BadInput("expected a retained class, and training images of the forgotten one, found none")
    middle = {k: env.judge.look(data.images_NCHW[rows]).features_ND.mean(dim=0) for k, rows in index.items() if len(rows)}
    return min((float((at_D - middle[forgotten]).norm()), k) for k, at_D in middle.items() if k != forgotten)[1]
