"""Where the real data sets are looked for, what their licences are, and how to get them from their publishers.

The table states the sha256 of every file as it is published, and of the content of the one file made of it. All
conversions were run once on the published files, with these digests as the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .spec import InputError
from .text_sources import REPOSITORY, SOURCES


@dataclass(frozen=True, slots=True)
class Published:
    """One published file: its address and the sha256 of its bytes."""

    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set: the file a stream reads, and what it is made of.

    file: its name in the data folder. content: ``convert.content_digest`` of it; empty where only the publisher's own
    checksums are known. convert: the function of ``convert.py`` that makes it from the sources; where there are no
    sources, the class of ``torchvision.datasets`` that gets it. publisher: a page for people. part: a file that is
    read where ``file`` is missing, for it holds some of the same. holds: what each of the two files has in it.
    """

    name: str
    file: str
    content: str
    convert: str
    licence: str
    publisher: str
    sources: tuple[Published, ...]
    part: str = ""
    holds: tuple[tuple[str, str], ...] = ()

    @property
    def how(self) -> str:
        """How to get it by hand, in one line."""
        if not self.sources:
            call = f"torchvision.datasets.{self.convert}(FOLDER, train=True, download=True), and train=False"
            return f"{call}; save their arrays as streams/published_images.py does"
        return f"download {' '.join(s.url for s in self.sources)} and convert with streams/convert.py:{self.convert}"


VLOSING = ("vlosing/driftDatasets", "01d08dec716870a36ea793e26e7e896ba921fe5d")
H2O_AIR = ("h2oai/h2o-3", "d209b17d2abc3667a0ddd5371b1eef44f4f785a0")
H2O_COVER = ("h2oai/h2o-3", "66f1dfacf2bbfa0e865c7e33c9a37a5b95f9b735")
GAS = ("BrechtDewilde1/BDProject", "92224f33465d8f76d82d9f3083027675f23b1c18")
KDD = ("potash/brf-example", "cb1486bbec7069eec30474bce4bf9478e867e9d2")
NANNYML = ("NannyML/nannyml", "4c86ee350dc541cb244f965cf555b4b2a004ae99")
BIKE = ("Sinestesiaaa/DA-bike-sharing-dataset", "e60a2ffa514fa1c66442df6e61cbcf903adbdfb6")
ETT = ("zhouhaoyi/ETDataset", "1d16c8f4f943005d613b5bc962e9eeb06058cf07")


RECBOLE = ("RUCAIBox/RecBole", "7b02be5ec80a88310f2d04a27a82adfcbb5dc211")
RESDNN = ("Lapis-Hong/Wide-ResDNN", "9889f939deb904a35692e2efdc6ab4f743a7df71")
AFM = ("hexiangnan/attentional_factorization_machine", "09c6756788a4fb78a4283271876fd81344c67bf3")
SRGNN = ("CRIPAC-DIG/SR-GNN", "e21cfa431f74c25ae6e4ae9261deefe11d1cb488")
OBP = ("st-tech/zr-obp", "8cbd5fa4558b7ad2ba4781546d6604e4cc3e07c4")


def _entry(
    name: str,
    file: str,
    content: str,
    convert: str,
    licence: str,
    repository: tuple[str, str],
    paths: tuple[tuple[str, str], ...],
) -> Dataset:
    """A data set whose sources lie in a GitHub repository at one commit."""
    owner, commit = repository
    raw = f"https://raw.githubusercontent.com/{owner}/{commit}/"
    sources = tuple(Published(raw + path, sha256) for path, sha256 in paths)
    return Dataset(name, file, content, convert, licence, f"https://github.com/{owner}", sources)


_TABLE = (
    _entry(
        "electricity",
        "elec2.npz",
        "7f20f9bd69c73a9624403fb4c0e61e1c15aaa0aae72bdea04cb6d51f22e9f64c",
        "electricity",
        "unclear: the repository states none (Harries 1999, widely passed on)",
        VLOSING,
        (
            ("realWorld/Elec2/elec2_data.dat", "f96f3b096a5318c1dab465f9c64b50824f751d651a13b864137cfefac6a6bef2"),
            ("realWorld/Elec2/elec2_label.dat", "769805ed2f942698b72bb6398d1f685ddd2c8b01213334658df709466890c154"),
        ),
    ),
    _entry(
        "covertype",
        "covertype_20k.npz",
        "626c3023414ac381f0b0e439d9da012aba129f45160e1370bd85b3dc8e36bb15",
        "covertype",
        "UCI, CC BY 4.0 by its publisher (not repeated in the repository)",
        H2O_COVER,
        (("smalldata/covtype/covtype.20k.data", "55ff5c8510624a2fe57838017f96caf86914223f131572edd35a038f3e85e43e"),),
    ),
    _entry(
        "airlines",
        "airlines_1987_2008.csv.gz",
        "bc852d53317abef9d8c372811f311d6cde3ca351e62a1acc46c54ec93cc0e226",
        "airlines",
        "US government work (Department of Transportation); repository Apache-2.0",
        H2O_AIR,
        (
            (
                "smalldata/airlines/allyears2k_headers.zip",
                "216bbab64a347b05ddf25b3ba97a6326a5eb09c047e0054a1b009ee67d8fbbf5",
            ),
        ),
    ),
    _entry(
        "gas-sensors",
        "gas_sensor_drift.npz",
        "c5fae35a2b8c05a6d5a76ad30688e3ccb1566445108f632d590eaa3df13b3bac",
        "gas_sensors",
        "UCI, CC BY 4.0 by its publisher (not repeated in the repository)",
        GAS,
        (
            ("data/batch1.dat", "2ff13bf02d2156ee01d948a6d46202a6a95855709176d91728339fa510221861"),
            ("data/batch2.dat", "d6790e1d6344db1cdcbbfecd039b88e98897ae8ad0a5d80a1ac530101f9b0dd1"),
            ("data/batch3.dat", "21b8564babf75b8b27ac3e9e03537ed44bc217a066f23dba4524af6f6bac29de"),
            ("data/batch4.dat", "30939c81857e501ce98aab0e606e2a720a42765189bf5e577c1255dd0b844b07"),
            ("data/batch5.dat", "3e2e4c791d1c4afa4c2092ad55e3cd7cdcf664f9e03187ddea102ccf547f5db3"),
            ("data/batch6.dat", "1d9e32f5e501b0f3e33354b469dd1955ca003614309f3b1e43fb137517ca154b"),
            ("data/batch8.dat", "1c6b15628bce7ab0ba8601d1c49864a78d2b283b05c060344704335324131014"),
            ("data/batch9.dat", "8deaa13dadb0098d96f0443989baa0a6ba7243a92e5f61f9ad1349a3a0ff087a"),
        ),
    ),
    _entry(
        "outdoor",
        "outdoor.npz",
        "5be2e32825ee2d6997f18e3f9b4d67973601b0226b4b62370a2cfe377739f734",
        "points_and_labels",
        "unclear: the repository asks for a citation (Losing et al. 2015)",
        VLOSING,
        (
            (
                "realWorld/outdoor/outdoorStream.data",
                "53f9d793056bf60f832ded0122a9f7286ea35e42fa019d2f4b2158bf6ef4ec1b",
            ),
            (
                "realWorld/outdoor/outdoorStream.labels",
                "e2dceebd3ab87380f7d60c03d8838a07135ba661ba0d626ab519bd97d6244435",
            ),
        ),
    ),
    _entry(
        "keystroke",
        "keystroke.npz",
        "73d5fe91f0d3f45167838eca2636e66ca6e2753054363f320620c48442fdb37a",
        "points_and_labels",
        "unclear: derived from the CMU keystroke data (Souza et al. 2015)",
        VLOSING,
        (
            ("artificial/souza/keystroke.data", "046982809cd741280c6009494e39864f4854a49509d081d81bc8cdf57208fd9a"),
            ("artificial/souza/keystroke.labels", "fdeb07aed846df2b91cee117ed60672a0d2e93938e0f2c0eb9de34269e645259"),
        ),
    ),
    _entry(
        "sea",
        "sea.npz",
        "97383adce1a5df758ddeed7a02926c8c613b86cebb147adedc229a8d287c5b42",
        "points_and_labels",
        "unclear: the repository states none (Street and Kim 2001)",
        VLOSING,
        (
            (
                "artificial/sea/SEA_training_data.csv",
                "dd2d7d5d08fa9c60ae4cb460f096e15e714cab4fa882b9a359eb24bd095f9f91",
            ),
            (
                "artificial/sea/SEA_training_class.csv",
                "03ee15105c454a4359724109feda3b3117c70115251f30ae4ca43549ef113a40",
            ),
        ),
    ),
    _entry(
        "spam",
        "spam_corpus_sparse.npz",
        "cedaaef565c1f60b03722e5f2414aeb6c160ad4b36c7ca45226148a913b7a5d1",
        "spam",
        "unclear: SpamAssassin corpus (Katakis et al. 2009)",
        VLOSING,
        (("realWorld/spam.zip", "0c3eb317fcca5495d5768bb9fb57603965b42c36da514bae9d98087c144baf26"),),
    ),
    _entry(
        "kdd99",
        "kdd99_10pct.csv.gz",
        "f8c8267ebcd9c0ed1fd7d6277fe5bfff8732e9b7db8e61b873542b2a534b6f9a",
        "unpacked_gzip",
        "UCI, CC BY 4.0 by its publisher (not repeated in the repository)",
        KDD,
        (("data/kddcup.data_10_percent.gz", "7bfaa8cef1350f72842018c32893e2fa4539d57efbb22f998eb74ecefc3da3b4"),),
    ),
    _entry(
        "employment",
        "acs_employment_ma.npz",
        "dfc4996604849d71aced781eadfbedda74abbccdd16af93d4b801db19e817548",
        "employment",
        "US government work (Census Bureau, PUMS); repository Apache-2.0",
        NANNYML,
        (
            (
                "nannyml/datasets/data/employment_MA_reference.pq",
                "21d0e33655666071bde9ed21bf35b24fe14c1476e3dd37a5194b827ad5a570e4",
            ),
            (
                "nannyml/datasets/data/employment_MA_analysis.pq",
                "591328bcf7e46139660f2cc6b1705a6f2f66edf2418ce2a893cf2892be3f66a7",
            ),
            (
                "nannyml/datasets/data/employment_MA_analysis_target.pq",
                "c306840f0c092bda7608a09e61e7e715ac2b7fb2d17da8062900c3ecd6fdbe30",
            ),
        ),
    ),
    _entry(
        "interchanging-rbf",
        "interchanging_rbf.npz",
        "3d0ea493b991f514597c5ce388a95ceef13592a9d0941c8860e4377a864833a7",
        "points_and_labels",
        "unclear: the repository asks for a citation (Losing et al. 2016)",
        VLOSING,
        (
            (
                "artificial/rbf/interchangingRBF.data",
                "268f1d3086949ccf2de3f7c4d3d6089002f38c5ede8d537186d16d2bddc66216",
            ),
            (
                "artificial/rbf/interchangingRBF.labels",
                "f2163890a0aea3a48638c7cb8be4a33acd27998b7e2f107528d5c87309e2e563",
            ),
        ),
    ),
    _entry(
        "moving-squares",
        "moving_squares.npz",
        "739c1f6d301284741e41188fae9c215bffcad689eee03b44265a91d4c18684e8",
        "points_and_labels",
        "unclear: the repository asks for a citation (Losing et al. 2016)",
        VLOSING,
        (
            (
                "artificial/movingSquares/movingSquares.data",
                "aa2952968b0e821672db12e1d04b3ea588cf965871d7e3f76767b38761c4e100",
            ),
            (
                "artificial/movingSquares/movingSquares.labels",
                "0425ff3c9d279917fe53c5189c91a58283c4616fe747c8879f2dfd6cb576d954",
            ),
        ),
    ),
    _entry(
        "chessboard",
        "transient_chessboard.npz",
        "7478f45dbc4d80009d5ff0114a3facc567f778b29d095ab94dc0bae0c510579b",
        "points_and_labels",
        "unclear: the repository asks for a citation (Losing et al. 2016)",
        VLOSING,
        (
            (
                "artificial/chess/transientChessboard.data",
                "0b3167b4b32a6937880f86c705a9090de9752f98dcf23204e6aa60914cdd0062",
            ),
            (
                "artificial/chess/transientChessboard.labels",
                "bf20f3e2ff1b53b7e3b69368b60850a85fa2ab7a390a631f657f68438a362f51",
            ),
        ),
    ),
    _entry(
        "bike-sharing",
        "bike_sharing_hour.csv.gz",
        "b03a2d02e8c10f435c43c7f0b358b7e34a003afea53dbc37f0183f2763295133",
        "bike_sharing",
        "UCI, CC BY 4.0 by its publisher (not repeated in the repository)",
        BIKE,
        (("data/hour.csv", "c8138fd801168650887a6884bf1d1fb2165072f322627db0d8f21b864b0ec147"),),
    ),
    _entry(
        "etth1",
        "etth1.csv.gz",
        "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        "zipped_bytes",
        "CC BY-ND 4.0: may be passed on unchanged only",
        ETT,
        (("ETT-small/ETTh1.csv", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),),
    ),
)


def _as_it_is(name: str, file: str, licence: str, repository: tuple[str, str], path: str, sha256: str) -> Dataset:
    """A text file that is packed and nothing else."""
    return _entry(name, file, sha256, "zipped_bytes", licence, repository, ((path, sha256),))


GROUPLENS = "GroupLens: for research, not to be passed on without leave"
ZOZO = "repository Apache-2.0; the data CC BY 4.0 by its publisher (not repeated there)"

_CLICKS = (
    _entry(
        "movielens",
        "movielens_100k.npz",
        "6f048d6d82dab3bd7c2a09e1169401218fd8566295ae4ca480b9213972d79f80",
        "movielens",
        GROUPLENS,
        RECBOLE,
        (
            (
                "recbole/dataset_example/ml-100k/ml-100k.inter",
                "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            ),
        ),
    ),
    _as_it_is(
        "movielens-users",
        "movielens_100k_users.tsv.gz",
        GROUPLENS,
        RECBOLE,
        "recbole/dataset_example/ml-100k/ml-100k.user",
        "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    ),
    _as_it_is(
        "movielens-items",
        "movielens_100k_items.tsv.gz",
        GROUPLENS,
        RECBOLE,
        "recbole/dataset_example/ml-100k/ml-100k.item",
        "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    ),
    _as_it_is(
        "criteo",
        "criteo_sample.tsv.gz",
        "unclear: Criteo's terms at Kaggle, research",
        RESDNN,
        "data/criteo/train.csv",
        "2b0614035f6c931dc4ac2c1a1a26fa954f2b9231703f3a77bcdd53d9d9f29872",
    ),
    _as_it_is(
        "avazu",
        "avazu_sample.csv.gz",
        "unclear: Avazu's terms at Kaggle",
        RESDNN,
        "data/avazu/train.csv",
        "49fb8cdcadfd9030a6fcb8cd97fe8205d94b84723ee8292e229d741ce1362e4f",
    ),
    _entry(
        "frappe",
        "frappe_test_valid.npz",
        "babc81d58e9043afd4dc9a611ba0bb000fd324415375279bd07d6dbfeac726be",
        "frappe",
        "unclear: the repository states none (Baltrunas et al. 2015, research)",
        AFM,
        (
            (
                "data/frappe/frappe.validation.libfm",
                "fdf4be563a7dd9b15f7a6e8b32671e90e6e7a2a2bd3af4e10bf13c5ad7e76e9e",
            ),
            ("data/frappe/frappe.test.libfm", "a2ebaef3a9af8e55f8bb0d08bc4923965e42e43760ebd7635ac2f8c5db99e097"),
        ),
    ),
    _as_it_is(
        "diginetica",
        "diginetica_clicks_sample.csv.gz",
        "unclear: CIKM Cup 2016",
        SRGNN,
        "datasets/sample_train-item-views.csv",
        "98da96e05c87ef12b739e4bfd9bc7b4864106ee77371f1db9eb4413e3f78d37e",
    ),
    _as_it_is(
        "open-bandit",
        "obd_random_men.csv.gz",
        ZOZO,
        OBP,
        "obd/random/men/men.csv",
        "ede6d08c6877f99cd3770f7d09e26c738e6aa6de4445ccccfb1356ba5d06b1eb",
    ),
    _as_it_is(
        "open-bandit-bts",
        "obd_bts_men.csv.gz",
        ZOZO,
        OBP,
        "obd/bts/men/men.csv",
        "db6d1f7ed2d591ba521533e45286d4c1fba7fe57a8ad2e80342210335f43c527",
    ),
)

_TEXT = (
    _entry(
        "text-cl",
        "cl_text_benchmark.jsonl.gz",
        "d22268effb22927096ed945e177438ac48cb30109b63ba33c036cca0d4a548ba",
        "text_benchmark",
        "mixed: the repository MIT; each corpus has its own terms (Amazon, Yelp, AG News: research; DBpedia CC BY-SA)",
        REPOSITORY,
        SOURCES,
    ),
)

_IMAGES = (
    Dataset(
        "mnist",
        "mnist.npz",
        "399f6831a588b2df9458cab2fad1a8fc1666482fe032c8d0b1034801438b5ade",
        "MNIST",
        "usually given as CC BY-SA 3.0 (LeCun, Cortes, Burges 1998)",
        "https://yann.lecun.com/exdb/mnist",
        (),
        holds=(("mnist.npz", "all 60,000 training and 10,000 test images, 28 x 28 grey, in the publisher's order"),),
    ),
    Dataset(
        "fashion",
        "fashion_mnist_complete.npz",
        "",
        "FashionMNIST",
        "MIT (Zalando; Xiao, Rasul, Vollgraf 2017)",
        "https://github.com/zalandoresearch/fashion-mnist",
        (),
        part="fashion_mnist.npz",
        holds=(
            ("fashion_mnist_complete.npz", "all 60,000 training and 10,000 test images, 28 x 28 grey"),
            ("fashion_mnist.npz", "a part: 2,000 of the 6,000 training images of each class; all 10,000 test images"),
        ),
    ),
    Dataset(
        "cifar10",
        "cifar10_complete.npz",
        "",
        "CIFAR10",
        "unclear: no formal licence; its author asks for a citation (Krizhevsky 2009)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (),
        part="cifar10_subset.npz",
        holds=(
            ("cifar10_complete.npz", "all 50,000 training and 10,000 test images, 32 x 32 in colour, in order"),
            (
                "cifar10_subset.npz",
                "a part: 1,000 training and 200 test images of each class, from JPEG copies (quality 75), not the "
                "original pixels; the others are in cifar10_more_jpeg.npz",
            ),
        ),
    ),
)

DATASETS: dict[str, Dataset] = {entry.name: entry for entry in (*_TABLE, *_CLICKS, *_TEXT, *_IMAGES)}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/driftway``, or ``~/.cache/driftway``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "driftway"


def folders() -> list[Path]:
    """Where files are looked for, in this order: ``$DRIFTWAY_DATA``, then the cache folder."""
    given = os.environ.get("DRIFTWAY_DATA", "")
    return ([Path(given)] if given else []) + [cache_folder()]


def locate_file(file: str) -> Path | None:
    """A file of this name if it is on this machine."""
    return next((folder / file for folder in folders() if (folder / file).is_file()), None)


def locate(dataset: Dataset, *, complete: bool = False) -> Path | None:
    """The data set's file if it is on this machine, or else the file that holds a part (unless ``complete``)."""
    found = locate_file(dataset.file)
    return locate_file(dataset.part) if found is None and dataset.part and not complete else found


def data_path(name: str) -> Path:
    """The file of a data set. Raises InputError, with the command that gets it, if it is not on this machine."""
    dataset = DATASETS[name]
    path = locate(dataset)
    if path is None:
        places = " or ".join(str(folder) for folder in folders())
        raise InputError(f"{name}: {dataset.file} is not in {places}; get it with: driftway data {name} --fetch")
    return path
