"""Covering arrays: few rows in which every pair of levels of every two factors occurs, made greedily from a seed.

A row chooses one level of each factor. The first level of a factor is its "off": it fills what no pair asks for, so
that a row holds as few unusual values as it can.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, product

Choice = tuple[str, str]
"""A factor and one of its levels."""
Row = dict[str, str]
_TRIES = 6
"""Rows drawn for each row kept."""


def covering_rows(
    factors: Mapping[str, Sequence[str]],
    forbidden: Collection[frozenset[Choice]] = (),
    times: int = 1,
    seed: int = 0,
) -> list[Row]:
    """Rows in which every pair of levels occurs at least `times` times, but for forbidden pairs, which never do.

    Raises:
        ValueError: a level that no row can hold, because it is forbidden with every level of some factor.
    """
    rng = random.Random(seed)
    missing = dict.fromkeys(pairs_of(factors, forbidden), times)
    rows: list[Row] = []
    while missing:
        drafts = [_draft(factors, forbidden, missing, rng) for _ in range(_TRIES)]
        best = max(drafts, key=lambda row: sum(pair in missing for pair in row_pairs(row)))
        found = [pair for pair in row_pairs(best) if pair in missing]
        if not found:
            raise ValueError(f"no row can hold the pair {sorted(next(iter(missing)))}: too much is forbidden")
        for pair in found:
            missing[pair] -= 1
            if missing[pair] == 0:
                del missing[pair]
        rows.append(best)
    return rows


def pairs_of(
    factors: Mapping[str, Sequence[str]], forbidden: Collection[frozenset[Choice]] = ()
) -> list[frozenset[Choice]]:
    """Every pair of levels of two factors that is not forbidden."""
    return [
        pair
        for one, other in combinations(factors, 2)
        for level, partner in product(factors[one], factors[other])
        if (pair := frozenset({(one, level), (other, partner)})) not in forbidden
    ]


def row_pairs(row: Row) -> list[frozenset[Choice]]:
    """The pairs that a row covers."""
    return [frozenset(pair) for pair in combinations(row.items(), 2)]


def _draft(
    factors: Mapping[str, Sequence[str]],
    forbidden: Collection[frozenset[Choice]],
    missing: Mapping[frozenset[Choice], int],
    rng: random.Random,
) -> Row:
    """One row around a missing pair; each further factor takes the level that adds the most missing pairs."""
    row: Row = dict(sorted(rng.choice(list(missing))))
    rest = [name for name in factors if name not in row]
    rng.shuffle(rest)
    for name in rest:
        allowed = [
            level
            for level in factors[name]
            if not any(frozenset({(name, level), choice}) in forbidden for choice in row.items())
        ]
        if not allowed:
            return {}
        gains = [sum(frozenset({(name, level), choice}) in missing for choice in row.items()) for level in allowed]
        # `index` takes the first of equals, which is the factor's "off".
        row[name] = allowed[gains.index(max(gains))]
    return {name: row[name] for name in factors}
