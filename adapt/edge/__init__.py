"""Edge bundles: a learner as ONNX graphs that predict and adapt under stock ONNX Runtime, without PyTorch.

``export.py`` makes a bundle, out of the step that ``steps.py`` finds for a learner, as ``tracing.py`` writes it down
and ``bundle.py`` describes it. ``runner.py`` runs one, and goes into every bundle as ``run.py``: it imports NumPy and
ONNX Runtime and nothing of this package. Learners that grow (``driftmoe.py``) go there as sources in place of graphs.
"""
