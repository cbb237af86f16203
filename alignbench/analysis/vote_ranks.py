"""Strengths of methods by votes: what every two won from each other, as `ranks` takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignbench.analysis.pairing import Placed
from alignbench.analysis.ranks import Ranks, Shares, ranks
from alignbench.analysis.vote_entries import Entry, Votes


def vote_ranks(entries: Sequence[Entry], placed: Sequence[Placed]) -> Ranks | None:
    """Bradley-Terry strengths over the first method, with prompts and training seeds at random and these raters alone.
    None where nobody voted on the first method, or not all that were voted on are linked to each other."""
    return ranks(vote_shares(entries, placed))


def vote_shares(entries: Sequence[Entry], placed: Sequence[Placed]) -> Shares:
    """Shares of votes (ties half) by prompt, or by image where there is one prompt alone; a skipped pair is missing."""
    votes = [entry for entry in entries if not np.isnan(entry.won)]
    owner = np.array([k for k, p in enumerate(placed) for _ in p.rows], dtype=np.int64)
    count, units = len(placed), Votes(votes).prompts
    sums, sizes = (np.zeros((len(set(units.tolist())), len(owner), len(owner))) for _ in range(2))
    for unit, entry in zip(units.tolist(), votes, strict=True):
        for one, other, won in ((entry.one, entry.other, entry.won), (entry.other, entry.one, 1 - entry.won)):
            sums[unit, one, other] += won
            sizes[unit, one, other] += 1
    member = np.eye(count)[owner]  # [runs, methods]
    by_prompt, by_run = np.full((len(sums), count, count), np.nan, np.float32), np.full((len(owner), count), np.nan)
    pooled, sizes_pooled = (member.T @ x @ member for x in (sums, sizes))
    np.divide(pooled, sizes_pooled, out=by_prompt, where=sizes_pooled > 0, casting="same_kind")
    of_run = np.divide(sums @ member, sizes @ member, out=np.full((len(sums), len(owner), count), np.nan),
                       where=sizes @ member > 0)  # fmt: skip
    rates = _mean_of_known(by_prompt.astype(np.float64))
    by_run = _mean_of_known(of_run)
    for array, own in ((by_run, owner), (rates, np.arange(count))):
        array[np.arange(len(array)), own] = np.nan
    by_prompt[:, np.arange(count), np.arange(count)] = np.nan
    return Shares(by_prompt[~np.isnan(by_prompt).all((1, 2))], by_run, owner, rates)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Over the first axis; NaN where nothing is known."""
    known = ~np.isnan(values)
    found: np.ndarray = np.full(values.shape[1:], np.nan)
    np.divide(np.nansum(values, 0), known.sum(0), out=found, where=known.any(0))
    return found
