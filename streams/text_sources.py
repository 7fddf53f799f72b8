"""The published files that the text benchmark is drawn from: tasks in their order, paths and digests."""

from __future__ import annotations

REPOSITORY = ("cmnfriend/O-LoRA", "07117e1fc4a5f5ad9308a815a42cee8f46502dc8")
TASKS = (
    ("BoolQA/BoolQA", 0), ("COPA/COPA", 0), ("MultiRC/MultiRC", 0.2), ("NLI/CB", 0), ("NLI/MNLI", 0), ("NLI/RTE", 0),
    ("QQP/QQP", 0), ("SC/IMDB", 0.2), ("SC/SST-2", 0), ("SC/amazon", 0), ("SC/yelp", 0.2), ("TC/agnews", 0),
    ("TC/dbpedia", 0.5), ("WiC/WiC", 0),
)  # fmt: skip
"""Family and name of each task, and what share of its one file is for tests; 0 for those with a file for each."""
LEFT_OUT = ("QQP", "IMDB")
"""Drawn like the others, but not kept."""
_DIGESTS = """
BoolQA/BoolQA/train dd6d9d5fa802a8c395a0a5f3c11a69926ca224204d703a1ab26273358ce8e01c
BoolQA/BoolQA/test 91e3495dd0be68a53251bf2ad8f527fa0249a6f23cb89d880ab4fb787d3e9bc9
COPA/COPA/train 2de2a58ccb8e916aa74eeb7d19d5d46e4a72e64d1374b6df76298034a484ca05
COPA/COPA/test 6f426193918e1b8ffb6371a98e118d37f85562390bf12bc1a22b3abec431e89d
MultiRC/MultiRC/train 01e48d97b8fddd486a0ec8e866e5cc466a9d1bb4780ee5a53b7854d29eea2c67
NLI/CB/train 35750e519950b3dd8760e9acc3f20178ebd3d72cece25647d86a50caa222ea5f
NLI/CB/test 45ddaa803017cf000f9dbc12abc91902afd4a5faa76c201a3beb7d873debd6bd
NLI/MNLI/train f5a7382106d5fa60d6b6f02ffdd7fe78863fdd0536f0e5e40c1676c67385f2d8
NLI/MNLI/test cd668846ac2568d19dc5398b0d263bf202546f71fc64466e422c6b3a87d7a1fa
NLI/RTE/train f21cc2a55c5ccbf18ea3ca007acd10eb307f3599595dc8e42d52869181e6fd24
NLI/RTE/test 639943ca3a7c3a50883f8ebf17824f0c2f18115d7a373f0d216993d1795d897b
QQP/QQP/train 1e29436ab691644e714ffe9f6927b6f4f702aaa0bcf152eb3ea18f71540bdfd6
QQP/QQP/test 5cf8d02e003b10cd91e14589c8b814cc596f3b326115d25d0cac2ba24843cc0f
SC/IMDB/train 0c5a3e7026e7dc3101e23a36726f47633c9a09a45369dd5f95c166aa80b6b43c
SC/SST-2/train dd62d365cee0e4be232a46cf082c12befe6ee711086e5b5325f951a84fad8ae3
SC/SST-2/test 53551b8d2d73f9b36df7fc9811715101bc3189d5b66a0e7981f4a7edee921795
SC/amazon/train a77b7a84773ea16b2906c16eb4de05ea87f529b91d5e3209b43060306e02c05f
SC/amazon/test 0e3337b659505456dd62089f4099778043d409e54f6e9cacf35154e783fdb6a2
SC/yelp/train d1e7088dd79a418341a1aab21c177167d6b0f1a1c628ed1c66de15f439575de6
TC/agnews/train 935fe86eb687d3d09f8b4035103761a94ca15df65a0980b1e7da4346a45d7a2a
TC/agnews/test 4cbed43bd30eb2841b053a13cb7b2dc4a2692934fd03832402a53cf557778849
TC/dbpedia/test 971c1a298668385042ce02b67444e1d45773ce0b8b22abbbc39a2592bbe7c255
WiC/WiC/train cd7d6f79a50e96150c98a64af076092ed3d04703760043e8a1d073ddc84f0fe7
WiC/WiC/test a98dcae6134e83eb0ea43c99e1577702860ceb1ce43fda795fb539c414134f5e
"""
SOURCES = tuple((f"CL_Benchmark/{name}.json", digest) for name, digest in map(str.split, _DIGESTS.split("\n")[1:-1]))
"""Paths in the repository and the sha256 of each, as the conversion takes them."""
