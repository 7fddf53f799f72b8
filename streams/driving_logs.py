"""Real logs for other road users of driving scenes: pedestrians of ETH and UCY, vehicles of one Lyft drive.

Sources: Pellegrini et al., ICCV 2009, and Lerner et al., Eurographics 2007 (the files of Social-STGCNN); Houston et
al., One Thousand and One Hours, CoRL 2020 (the sample scene of l5kit). A log is 7 s, cut out of a track and moved so
that its place at ``PAST`` is the origin and it heads along x then; nothing else is changed but the sampling.
"""

from __future__ import annotations

import numpy as np

from .datasets import locate_file
from .driving import FUTURE, KINDS, PAST, Track
from .events import Array
from .kinematics import STEP, seen_from
from .npz import read_arrays
from .spec import InputError

FILES = {"eth-ucy": "eth_ucy_trajectories.npz", "lyft": "lyft_l5_single_scene.npz"}
PER_FRAME = 0.04
"""Seconds between the frame numbers of ETH and UCY; tracks are noted every tenth."""
PEDESTRIAN = (0.6, 0.6)
CAR = 3
SPAN = (PAST + FUTURE) * STEP


def tracks(name: str, limit: int = 400) -> list[Track]:
    """The logs of ``eth-ucy`` or ``lyft``, at most so many, spread evenly over the file; one of each long enough track.

    Raises InputError for another name and where the file is not on this machine.
    """
    if name not in FILES:
        raise InputError(f"driving logs: there are {', '.join(FILES)}, not {name!r}")
    path = locate_file(FILES[name])
    if path is None:
        raise InputError(f"driving logs: {FILES[name]} is in none of the data folders (see DRIFTWAY_DATA)")
    if name == "eth-ucy":
        found = _pedestrians(read_arrays(path, ("scene", "frame", "agent", "xy")))
    else:
        keys = ("frame_agent_interval", *(f"agent_{part}" for part in ("centroid", "extent", "track_id", "label")))
        found = _vehicles(read_arrays(path, keys))
    chosen = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    return [found[i] for i in chosen]


def _pedestrians(log: dict[str, Array]) -> list[Track]:
    found = []
    for rows in _by_track(log["scene"].astype(np.int64) * 1_000_000 + log["agent"], log["frame"]):
        times = PER_FRAME * log["frame"][rows]
        if times[-1] - times[0] >= SPAN and np.diff(times).max() < 1.0:
            found.append(Track(_resampled(times, log["xy"][rows]), PEDESTRIAN, KINDS.index("pedestrian")))
    return found


def _vehicles(log: dict[str, Array]) -> list[Track]:
    spans = log["frame_agent_interval"]
    frame = np.repeat(np.arange(len(spans)), spans[:, 1] - spans[:, 0])
    cars = np.flatnonzero(log["agent_label"] == CAR)
    found = []
    for rows in _by_track(log["agent_track_id"][cars], frame[cars]):
        rows = cars[rows]
        times = STEP * frame[rows]
        if times[-1] - times[0] >= SPAN and np.diff(times).max() < 0.5:
            length, width = np.median(log["agent_extent"][rows, :2], 0).tolist()
            states = _resampled(times, log["agent_centroid"][rows])
            found.append(Track(states, (length, width), KINDS.index("vehicle")))
    return found


def _by_track(track: Array, time: Array) -> list[Array]:
    """Rows of each track in the order of time."""
    order = np.lexsort((time, track))
    edges = np.flatnonzero(np.diff(track[order])) + 1
    return np.split(order, edges)


def _resampled(times: Array, places: Array) -> Array:
    """float64[70, 4]: the first 7 s every 0.1 s, lines between the notes; velocities over 1 s, as notes are shaky."""
    at = times[0] + STEP * np.arange(PAST + FUTURE + 1)
    x, y = (np.interp(at, times, column.astype(np.float64)) for column in places.T)
    late, early = np.minimum(at + 0.5, at[-1]), np.maximum(at - 0.5, at[0])
    velocity = np.stack([(np.interp(late, at, c) - np.interp(early, at, c)) / (late - early) for c in (x, y)])
    speed = np.hypot(*velocity)
    heading = np.where(speed > 0.2, np.arctan2(velocity[1], velocity[0]), np.nan)
    heading = _carried(heading)
    states = np.column_stack([x, y, heading, np.where(speed > 0.2, speed, 0.0)])
    return seen_from(states, states[PAST])


def _carried(heading: Array) -> Array:
    """What hardly moves keeps the heading that it had last (or has first; 0 if it never moves)."""
    known = np.flatnonzero(np.isfinite(heading))
    if not len(known):
        return np.zeros_like(heading)
    last = np.maximum(np.searchsorted(known, np.arange(len(heading)), side="right") - 1, 0)
    return heading[known[last]]
