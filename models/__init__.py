"""Floor 1: models and the compiled parts they are made of."""
