"""Sharing out groups of images into splits or folds of the same make-up.

Iterative stratification by groups: the largest group first, each to the split that it brings
closest to its share of every class, then moves and swaps as long as one of them helps, from a few
starts. The number of ways is far beyond trying them all: the result is good, not proven best.
"""

from collections.abc import Sequence

import numpy as np

from microplastics.errors import UserError

_SWAP_SAMPLE = 256  # groups whose swaps are all tried at once
_IDLE_ROUNDS = 4  # of other samples, before the search for swaps ends
_MAX_ROUNDS = 2000
_STARTS = 16
_TOLERANCE = 1e-12


def split(
    groups: Sequence[str], class_counts: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """Assign every group to one split, each class by its share.

    Minimises the sum over splits s and columns c of (part of c that is in s - share of s)^2.

    Args:
        groups: the names of G groups, each once; their order does not matter.
        class_counts: (G, C), how many of each kind a group holds; a kind is a class, or the
            images without particles, or all images. Finite and not negative.
        shares: of S splits, each above 0, together 1.
        seed: decides between equals.

    Returns:
        int64 (G,): the split of each group, 0 to S - 1; every split gets at least one group.

    Raises:
        UserError: the shares do not add up, or there are fewer groups than splits.
    """
    shares = check_shares(shares)
    counts = np.asarray(class_counts, np.float64)
    if len(set(groups)) != len(groups) or counts.ndim != 2 or len(counts) != len(groups):
        raise ValueError(f"{len(groups)} groups, of unique names, need as many rows of counts")
    if len(groups) < len(shares):
        raise UserError(
            f"There are {len(groups)} groups for {len(shares)} splits, and a group is never "
            "divided; ask for fewer splits or form smaller groups."
        )
    # By name, so that the order of the input has no influence.
    order = np.array(sorted(range(len(groups)), key=groups.__getitem__), np.int64)
    parts, rng = _parts(counts[order]), np.random.default_rng(seed)
    best = None
    for start in range(_STARTS if len(groups) <= _SWAP_SAMPLE else 1):
        search = _Search(parts, shares, rng)
        search.fill(shuffle=start > 0)
        search.improve()
        if best is None or search.cost() < best.cost() - _TOLERANCE:
            best = search
    assignment = np.empty(len(groups), np.int64)
    assignment[order] = best.assignment
    return assignment


def folds(groups: Sequence[str], class_counts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assign every group to one of ``count`` folds of equal shares; see :func:`split`.

    Raises:
        UserError: fewer than 2 folds, or fewer groups than folds.
    """
    if count < 2:
        raise UserError(f"{count} folds are too few; ask for 2 or more.")
    if count > len(groups):
        raise UserError(
            f"There are {len(groups)} groups for {count} folds, and a group is never divided; "
            "ask for fewer folds or form smaller groups."
        )
    return split(groups, class_counts, [1 / count] * count, seed)


def check_shares(shares: Sequence[float]) -> np.ndarray:
    """Return the shares as float64 that add up to 1.

    Raises:
        UserError: a share is not above 0, or they do not add up to 1 within 0.001.
    """
    array = np.asarray(shares, np.float64)
    words = ", ".join(f"{share:g}" for share in shares)
    if not len(array) or not (array > 0).all() or not abs(array.sum() - 1) <= 1e-3:
        raise UserError(
            f"The shares {words} must each be above 0 and add up to 1; write 0.7,0.15,0.15."
        )
    return array / array.sum()


def deviation(class_counts: np.ndarray, assignment: np.ndarray, shares: Sequence[float]) -> float:
    """Largest difference between a split's part of a kind and its share, over splits and kinds.

    Args:
        class_counts: (G, C), as for :func:`split`.
        assignment: (G,), the split of each group.
        shares: of S splits.

    Returns:
        from 0, perfect, to 1; kinds that nothing belongs to do not count.
    """
    parts = _parts(np.asarray(class_counts, np.float64))
    loads = np.zeros((len(shares), parts.shape[1]))
    np.add.at(loads, assignment, parts)
    return float(np.abs(loads - np.asarray(shares)[:, None]).max(initial=0.0))


def _parts(counts: np.ndarray) -> np.ndarray:
    """What part of each kind a group holds, (G, C); kinds that nothing belongs to are left out."""
    totals = counts.sum(axis=0)
    return counts[:, totals > 0] / totals[totals > 0]


class _Search:
    """An assignment of groups to splits, and how far each split is from its shares."""

    def __init__(self, parts: np.ndarray, shares: np.ndarray, rng: np.random.Generator):
        self._parts, self._rng = parts, rng
        self._squares = (parts * parts).sum(axis=1)
        self._excess = np.repeat(-shares[:, None], parts.shape[1], axis=1)  # (S, C)
        self._members = np.zeros(len(shares), np.int64)
        self.assignment = np.full(len(parts), -1, np.int64)

    def cost(self) -> float:
        """Sum of the squared differences from the shares."""
        return float((self._excess**2).sum())

    def fill(self, shuffle: bool) -> None:
        """Assign every group, the largest first; the seed decides between equals.

        Args:
            shuffle: take the groups only roughly in the order of their size.
        """
        size = self._parts.sum(axis=1)
        if shuffle:
            size = size * self._rng.uniform(0.3, 1.0, len(size))
        shuffled = self._rng.permutation(len(size))
        order = shuffled[np.argsort(-size[shuffled], kind="stable")]
        splits = len(self._excess)
        for place, group in enumerate(order):
            # Adding x to the excess e changes |e|^2 by 2 e.x + |x|^2; only 2 e.x differs.
            gains = self._excess @ self._parts[group]
            if len(order) - place <= (self._members == 0).sum():
                gains = np.where(self._members == 0, gains, np.inf)
            best = np.flatnonzero(gains <= gains.min() + _TOLERANCE)
            # Equals, such as groups without a count: where the fewest are for the share.
            target = min(best.tolist(), key=lambda s: (self._members[s], s)) if splits > 1 else 0
            self._put(int(group), target)

    def improve(self) -> None:
        """Move and swap while that brings the splits closer to their shares."""
        idle = 0
        for _ in range(_MAX_ROUNDS):
            if self._move() or self._swap():
                idle = 0
                continue
            idle += 1
            if idle >= _IDLE_ROUNDS or len(self._parts) <= _SWAP_SAMPLE:
                return

    def _put(self, group: int, target: int) -> None:
        source = self.assignment[group]
        if source >= 0:
            self._excess[source] -= self._parts[group]
            self._members[source] -= 1
        self._excess[target] += self._parts[group]
        self._members[target] += 1
        self.assignment[group] = target

    def _move(self) -> bool:
        """Make the best move of one group, if it helps."""
        products = self._parts @ self._excess.T  # (G, S)
        here = products[np.arange(len(products)), self.assignment]
        change = products - here[:, None] + self._squares[:, None]
        change[np.arange(len(products)), self.assignment] = 0
        change[self._members[self.assignment] == 1] = 0  # a split is never left without a group
        group, target = divmod(int(change.argmin()), change.shape[1])
        if change[group, target] >= -_TOLERANCE:
            return False
        self._put(group, target)
        return True

    def _swap(self) -> bool:
        """Make the best swap of two groups out of a sample, if it helps."""
        sample = np.arange(len(self._parts))
        if len(sample) > _SWAP_SAMPLE:
            sample = np.sort(self._rng.choice(len(sample), _SWAP_SAMPLE, replace=False))
        parts, at = self._parts[sample], self.assignment[sample]
        products = parts @ self._excess.T
        here = products[np.arange(len(sample)), at]
        # x of split a for y of split b: (x - y).(e_b - e_a) + |x - y|^2, e before the swap.
        cross = products[:, at] - here[:, None]
        gaps = self._squares[sample][:, None] + self._squares[sample] - 2 * parts @ parts.T
        change = cross + cross.T + gaps
        change[at[:, None] == at] = 0
        one, other = divmod(int(change.argmin()), len(sample))
        if change[one, other] >= -_TOLERANCE:
            return False
        first, second = int(sample[one]), int(sample[other])
        splits = int(at[one]), int(at[other])
        self._put(first, splits[1])
        self._put(second, splits[0])
        return True
