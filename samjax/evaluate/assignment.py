"""As many pairs as possible between two sets of which each member may be paired once: a maximum bipartite matching.

For the pixels of two edge maps, where near pairs should be preferred: pairs are first made greedily, the nearest ones
before all others, then paths that add a pair are searched from all unpaired members at once, level by level (Hopcroft
and Karp 1973; with one tree for each of them). Some twenty milliseconds for 5000 pixels; on some such graphs
`scipy.sparse.csgraph.maximum_bipartite_matching` did not end within twelve seconds. NumPy only.
"""

import numpy as np


def pair(near: np.ndarray, size: int) -> np.ndarray:
    """(n,) int64: the member of the second set, 0 to size - 1, that each of n members of the first is paired with; -1
    for none.

    near: int (n, k), those that may be paired with it, the better ones first, -1 for none; no one twice in a row.
    """
    here, there = np.full(len(near), -1), np.full(size, -1)
    _greedy(near, here, there)
    first, column = np.nonzero(near >= 0)
    second = near[first, column].astype(np.int64)
    if np.count_nonzero(there < 0) < np.count_nonzero(here < 0):  # search from where fewer are left
        order = np.argsort(second, kind="stable")
        _extend(second[order], first[order], there, here)
    else:
        _extend(first, second, here, there)
    return here


def _greedy(near: np.ndarray, here: np.ndarray, there: np.ndarray) -> None:
    """Pairs of the first column, then of the second, ...: of those who want the same one, the last gets it."""
    for wanted in near.T:
        rows = np.flatnonzero((wanted >= 0) & (here < 0))
        rows = rows[there[wanted[rows]] < 0]
        there[wanted[rows]] = rows
        rows = rows[there[wanted[rows]] == rows]
        here[rows] = wanted[rows]


def _extend(source: np.ndarray, target: np.ndarray, here: np.ndarray, there: np.ndarray) -> None:
    """Adds pairs until there can be no more; who is paired stays so. source (sorted), target: all that are allowed."""
    starts = np.searchsorted(source, np.arange(len(here) + 1))
    counts, starts = np.diff(starts), starts[:-1]
    parent = np.empty(len(there), np.int64)
    while len(end := _search(target, starts, counts, here, there, parent)):
        while len(end):  # turn the paths over, all of them a step at a time: they share nothing
            child = parent[end]
            before = here[child]
            here[child], there[end] = end, child
            end = before[before >= 0]


def _search(target, starts, counts, here, there, parent) -> np.ndarray:
    """The unpaired ends of paths from unpaired members of the first set, at most one from each; parent is written."""
    seen = np.zeros(len(there), bool)
    root, leaf = np.full(len(here), -1), np.full(len(here), -1)
    level = np.flatnonzero(here < 0)
    root[level] = level
    while len(level):
        n = counts[level]
        reached = target[np.repeat(starts[level] - np.cumsum(n) + n, n) + np.arange(n.sum())]
        via = np.repeat(level, n)
        new = ~seen[reached]
        reached, via = reached[new], via[new]
        parent[reached] = via  # of several who reach one, the last
        once = parent[reached] == via
        reached, via = reached[once], via[once]
        seen[reached] = True
        tree, free = root[via], there[reached] < 0
        leaf[tree[free]] = reached[free]
        goes_on = ~free & (leaf[tree] < 0)
        level = there[reached[goes_on]]
        root[level] = tree[goes_on]
    return leaf[leaf >= 0]
