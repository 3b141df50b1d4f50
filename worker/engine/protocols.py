"""Names of the ways in which figures about images come about: two figures are comparable only under one name.

The number of items is not part of a name; it is the finding's `n`, and biased figures are comparable at equal n alone. Who sees
the images is: a judge of this service (the first 16 digits of its digest, the rest is in the report's `judges`), or a network
that the operator mounted. Only a distance of the mounted Inception's features is called FID.
"""

from __future__ import annotations

from importlib.metadata import version


def fid(seen_by: str) -> str:
    """Of Frechet distances in features of the mounted Inception, see `metric_networks.Inception.protocol_id`."""
    return f"fid/float64/{seen_by}"


def kid_of_pairs(seen_by: str) -> str:
    """Of kernel distances of paired sets, see `statistics.kernel_distance`."""
    return f"kid/float64/cubic/all-pairs/{seen_by}"


def kid_of_subsets(seen_by: str, subsets: int, size: int) -> str:
    """Of kernel distances of independent sets, see `set_distances.kid`."""
    return f"kid/float64/cubic/subsets={subsets}x{size}/torchmetrics-{version('torchmetrics')}/{seen_by}"


def inception_score(seen_by: str, splits: int) -> str:
    """See `statistics.inception_score`."""
    return f"inception-score/float64/splits={splits}/{seen_by}"


def clip_similarity(seen_by: str) -> str:
    """Of image with image, see `metric_networks.Clip.protocol_id`."""
    return f"clip-similarity/image-image/{seen_by}"


def prdc(nearest: int, seen_by: str) -> str:
    """Of precision, recall, density and coverage with k nearest neighbours."""
    return f"prdc-{version('prdc')}/k={nearest}/{seen_by}"


def judge_distance(judge: str) -> str:
    """Of Frechet distances in features of a judge of which this is the SHA-256 of the weights: other numbers than an FID."""
    return f"judge-distance/float64/{judge_features(judge)}"


def judge_features(judge: str) -> str:
    """Who sees the images: the judge of which this is the SHA-256 of the weights."""
    return f"judge={judge[:16]}"
