"""Floor 2: metrics as pure functions, evaluators, reports."""
