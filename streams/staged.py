"""The real data sets (and the classic synthetic ones that come as files), each opened from the file of ``datasets.py``.

Known changes are Boundary events and stand in ``spec.drifts``. Row order is the publisher's; the row number is the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .convert import EMPLOYMENT_COLUMNS, GASES
from .datasets import data_path
from .events import Array, Batch, Rejected
from .npz import read_arrays
from .readers import Delimited
from .sources import BlockStream, from_arrays
from .spec import Column, InputError, Stream, StreamSpec
from .table import Rules, TableBlocks, follow, settle


@dataclass(frozen=True)
class Nothing:
    """No parameters."""


@dataclass(frozen=True)
class Spam:
    """words: how many columns; the words found in most of the first 2,000 mails."""

    words: int = 100


def _arrays(name: str, *keys: str) -> dict[str, Array]:
    """The named arrays of the data set's file. Raises InputError if one is not there."""
    path = data_path(name)
    arrays = read_arrays(path, keys)
    for key in keys:
        if key not in arrays:
            raise InputError(f"{path}: no array {key!r}; this is not the file that driftway data {name} describes")
    return arrays


def _stream(
    name: str,
    columns: Sequence[Column | str],
    classes: Sequence[str],
    target: str,
    boundaries: Mapping[int, str] | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> Stream:
    """A classification stream over ``x`` and ``y``; columns given by name are numeric and never empty."""
    arrays = _arrays(name, "x", "y") if arrays is None else arrays
    boundaries = boundaries or {}
    spec = StreamSpec(
        name,
        tuple(c if isinstance(c, Column) else Column(c, missing=False) for c in columns),
        target_name=target,
        classes=tuple(classes),
        length=len(arrays["x"]),
        drifts=tuple(sorted(boundaries)),
    )
    return from_arrays(arrays["x"], arrays["y"], spec=spec, boundaries=boundaries)


def _changes(values: Array, what: str) -> dict[int, str]:
    """A boundary at every row whose value differs from the row before."""
    rows = np.flatnonzero(np.diff(values.astype(np.int64))) + 1
    return {int(row): f"{what} {values[row]}" for row in rows}


def _every(rows: int, n: int, what: str) -> dict[int, str]:
    return {row: f"{what} {row // rows + 1}" for row in range(rows, n, rows)}


def electricity(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Will the price in New South Wales rise above its mean of the last 24 hours: 45,312 half-hours, 1996 to 1998.

    All eight columns, scaled to 0..1 by the source (day: 1..7). Labels are autocorrelated: no-change reaches 85 %.
    """
    columns = ["date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer"]
    return _stream("electricity", columns, ("DOWN", "UP"), "class")


COVER = ["Spruce/Fir", "Lodgepole Pine", "Ponderosa Pine", "Cottonwood/Willow", "Aspen", "Douglas-fir", "Krummholz"]


def covertype(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Forest cover of 30 m squares: the first 20,000 rows of the set, 54 columns, 7 classes.

    The set opens with 15,120 rows drawn so that the classes are even; there a Boundary stands.
    """
    measured = [
        "elevation",
        "aspect",
        "slope",
        "h_dist_hydrology",
        "v_dist_hydrology",
        "h_dist_roadways",
        "hillshade_9am",
        "hillshade_noon",
        "hillshade_3pm",
        "h_dist_fire",
    ]
    columns = [*measured, *(f"wilderness_{k}" for k in range(1, 5)), *(f"soil_{k}" for k in range(1, 41))]
    return _stream("covertype", columns, COVER, "cover_type", {15_120: "end of the balanced rows"})


def gas_sensors(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Which of six gases: 16 sensors of eight features each, ageing over 36 months in eight batches (7 and 10 are not
    there).
    """
    features = ["DR", "|DR|", "EMAi0.001", "EMAi0.01", "EMAi0.1", "EMAd0.001", "EMAd0.01", "EMAd0.1"]
    columns = [f"sensor{k} {feature}" for k in range(1, 17) for feature in features]
    arrays = _arrays("gas-sensors", "x", "y", "batch")
    return _stream("gas-sensors", columns, GASES, "gas", _changes(arrays["batch"], "batch"), arrays)


def outdoor(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """40 garden objects seen in ten approaches under changing light: 4,000 rows of 21 colour bins."""
    return _stream("outdoor", [f"bin{k}" for k in range(21)], [f"object {k}" for k in range(40)], "object")


def keystroke(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Which of four people types the same password: ten timings, 1,600 rows in eight sessions of 200 (a Boundary at
    each).
    """
    columns = [f"timing{k}" for k in range(10)]
    return _stream("keystroke", columns, [f"person {k}" for k in range(4)], "person", _every(200, 1600, "session"))


def sea(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """SEA concepts: y = 1 if x0 + x1 is at most 8, 9, 7, 9.5 in turn; 10 % wrong labels, a drift every 12,500 rows."""
    return _stream("sea", ["x0", "x1", "x2"], ("0", "1"), "class", _every(12_500, 50_000, "concept"))


def interchanging_rbf(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Fifteen Gaussian classes in the plane; two or more of them change places every 3,000 rows."""
    classes = [str(k) for k in range(15)]
    return _stream("interchanging-rbf", ["x0", "x1"], classes, "class", _every(3000, 200_000, "concept"))


def moving_squares(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Four squares that move on at every row. Labels go round 0, 1, 2, 3: whoever sees past labels can cheat."""
    return _stream("moving-squares", ["x0", "x1"], [str(k) for k in range(4)], "class")


def chessboard(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """A chessboard of eight classes shown field after field, then whole, again and again: only P(x) drifts."""
    return _stream("chessboard", ["x0", "x1"], [str(k) for k in range(8)], "class")


EMPLOYMENT_NOMINAL = {"MAR": 6, "RELP": 18, "ESP": 9, "CIT": 6, "MIG": 4, "MIL": 5, "ANC": 5, "RAC1P": 10}
"""Columns whose codes have no order, and one more than the greatest code of each."""


def employment(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Who is employed: 277,677 answers to the census in Massachusetts, 2015 to 2018; a Boundary where the year changes.

    Age and schooling are numeric, yes/no answers are 1 and 2, the rest is nominal (the census bureau's codes).
    """
    columns = [
        Column(n, tuple(map(str, range(EMPLOYMENT_NOMINAL[n]))) if n in EMPLOYMENT_NOMINAL else None, missing=False)
        for n in EMPLOYMENT_COLUMNS
    ]
    arrays = _arrays("employment", "x", "y", "year")
    return _stream("employment", columns, ("no", "yes"), "employed", _changes(arrays["year"], "year"), arrays)


def spam(params: Spam, seed: int) -> Stream:  # noqa: ARG001
    """9,324 mails in time order; a column per word, 1 where the mail has it. The words are chosen on the first 2,000
    mails.
    """
    arrays = _arrays("spam", "indices", "indptr", "shape", "y")
    rows, width = (int(v) for v in arrays["shape"])
    if not 1 <= params.words <= width:
        raise InputError(f"spam: words must be 1 to {width}, not {params.words}")
    start = arrays["indptr"][min(2000, rows)]
    counts = np.bincount(arrays["indices"][:start], minlength=width)
    chosen = np.sort(np.argsort(-counts, kind="stable")[: params.words])
    place = np.full(width, -1)
    place[chosen] = np.arange(len(chosen))
    row = np.repeat(np.arange(rows), np.diff(arrays["indptr"]))
    column = place[arrays["indices"]]
    x = np.zeros((rows, len(chosen)), dtype=np.uint8)
    x[row[column >= 0], column[column >= 0]] = 1
    dense = {"x": x, "y": arrays["y"]}
    return _stream("spam", [f"word {k}" for k in chosen], ("legitimate", "spam"), "class", arrays=dense)


_KDD_COLUMNS = (
    "duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent hot num_failed_logins "
    "logged_in num_compromised root_shell su_attempted num_root num_file_creations num_shells num_access_files "
    "num_outbound_cmds is_host_login is_guest_login count srv_count serror_rate srv_serror_rate rerror_rate "
    "srv_rerror_rate same_srv_rate diff_srv_rate srv_diff_host_rate dst_host_count dst_host_srv_count "
    "dst_host_same_srv_rate dst_host_diff_srv_rate dst_host_same_src_port_rate dst_host_srv_diff_host_rate "
    "dst_host_serror_rate dst_host_srv_serror_rate dst_host_rerror_rate dst_host_srv_rerror_rate"
)
KDD_COLUMNS = tuple(_KDD_COLUMNS.split())
KDD_NOMINAL = {
    "protocol_type": "icmp tcp udp",
    "service": "IRC X11 Z39_50 auth bgp courier csnet_ns ctf daytime discard domain domain_u echo eco_i ecr_i efs exec "
    "finger ftp ftp_data gopher hostnames http http_443 imap4 iso_tsap klogin kshell ldap link login mtp name "
    "netbios_dgm netbios_ns netbios_ssn netstat nnsp nntp ntp_u other pm_dump pop_2 pop_3 printer private red_i "
    "remote_job rje shell smtp sql_net ssh sunrpc supdup systat telnet tftp_u tim_i time urh_i urp_i uucp "
    "uucp_path vmnet whois",
    "flag": "OTH REJ RSTO RSTOS0 RSTR S0 S1 S2 S3 SF SH",
}
_KDD_CLASSES = (
    "back buffer_overflow ftp_write guess_passwd imap ipsweep land loadmodule multihop neptune nmap normal perl phf "
    "pod portsweep rootkit satan smurf spy teardrop warezclient warezmaster"
)
KDD_CLASSES = tuple(_KDD_CLASSES.split())


def kdd99(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """494,021 network connections, normal or one of 22 attacks, in long runs of one class: no-change reaches 99.9 %.

    Read lazily from the csv; protocol, service and flag are nominal. The dot behind each class name is left out.
    """
    columns = tuple(
        Column(n, tuple(KDD_NOMINAL[n].split()) if n in KDD_NOMINAL else None, missing=False) for n in KDD_COLUMNS
    )
    spec = StreamSpec("kdd99", columns, target_name="class", classes=KDD_CLASSES, length=494_021)
    reader = _csv("kdd99", "no")
    reader.names = (*KDD_COLUMNS, "class")
    plan = follow(reader, spec)
    plan.classes = {f"{name}.": code for name, code in plan.classes.items()}
    return BlockStream(spec, TableBlocks(reader, plan))


_AIRLINES_LEAKS = (
    "DepTime ArrTime ActualElapsedTime AirTime ArrDelay DepDelay TaxiIn TaxiOut Cancelled CancellationCode Diverted "
    "CarrierDelay WeatherDelay NASDelay SecurityDelay LateAircraftDelay IsDepDelayed"
)
AIRLINES_LEAKS = tuple(_AIRLINES_LEAKS.split())
"""What is known only once the flight has left."""


def airlines(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Will a US flight arrive late: 43,978 flights, 1,999 a year from 1987 to 2008; a Boundary where the year changes.

    Only what the timetable says: year, month, days, planned times, flight number, distance, and (nominal) carrier,
    origin, destination. Left out are all that is known later (DepTime, ArrTime, ActualElapsedTime, AirTime, both
    delays and their causes, TaxiIn, TaxiOut, Cancelled, CancellationCode, Diverted, IsDepDelayed) and TailNum,
    missing in the first years.
    """
    reader = _csv("airlines")
    nominal = ("UniqueCarrier", "Origin", "Dest")
    rules = Rules("classification", 43_978, nominal, drop=(*AIRLINES_LEAKS, "TailNum"))
    spec, x, y = _loaded(reader, "IsArrDelayed", rules)
    columns = tuple(replace(c, open=False) for c in spec.columns)
    year = x[:, [c.name for c in columns].index("Year")]
    boundaries = _changes(year.astype(np.int64), "year")
    spec = replace(spec, name="airlines", columns=columns, length=len(x), drifts=tuple(boundaries))
    return from_arrays(x, y, spec=spec, boundaries=boundaries)


def bike_sharing(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """How many bikes are hired in an hour (regression): 17,379 hours of 2011 and 2012, from calendar and weather.

    Left out: casual and registered (their sum is the target), the running number and the date. Demand grows by two
    thirds.
    """
    drop = ("instant", "dteday", "casual", "registered")
    rules = Rules("regression", 17_379, ("season", "weekday", "weathersit"), drop=drop, missing=False)
    spec, x, y = _loaded(_csv("bike-sharing"), "cnt", rules)
    columns = tuple(replace(c, open=False) for c in spec.columns)
    return from_arrays(x, y, spec=replace(spec, name="bike-sharing", columns=columns, length=len(x)))


def etth1(params: Nothing, seed: int) -> Stream:  # noqa: ARG001
    """Oil temperature of a transformer (regression): 17,420 hours, July 2016 to June 2018, one hour ahead.

    Row t asks for OT of hour t from the six loads of that hour, OT of the hour before (``OT before``; missing in row
    0), the hour of the day and the month.
    """
    spec, x, y = _loaded(_csv("etth1"), "OT", Rules("regression", missing=False))
    stamps = x[:, 0].astype("datetime64[s]")
    hours = stamps.astype("datetime64[h]").astype(np.int64) % 24
    months = stamps.astype("datetime64[M]").astype(np.int64) % 12 + 1
    before = np.concatenate([[np.nan], y[:-1]])
    extra = (Column("OT before"), Column("hour", missing=False), Column("month", missing=False))
    spec = replace(spec, name="etth1", columns=(*spec.columns[1:], *extra), length=len(x))
    return from_arrays(np.column_stack([x[:, 1:], before, hours, months]), y, spec=spec)


def _csv(name: str, header: str = "yes") -> Delimited:
    path: Path = data_path(name)
    return Delimited(path, header="no" if header == "no" else "yes")


def _loaded(reader: Delimited, label: str, rules: Rules) -> tuple[StreamSpec, Array, Array]:
    """The whole table as arrays: spec, float64[N, d] and the labels."""
    plan = settle(reader, label, rules)
    events = list(BlockStream(plan.spec, TableBlocks(reader, plan)))
    batches = [e for e in events if isinstance(e, Batch)]
    wrong = next((e for e in events if isinstance(e, Rejected)), None)
    if wrong is not None:
        raise InputError(f"{reader.name}: row {wrong.row}: {wrong.reason}")
    x = np.concatenate([np.asarray(b.x) for b in batches])
    return plan.spec, x, np.concatenate([b.y for b in batches if b.y is not None])
