"""One op, one file: the plain PyTorch reference, which is the contract, and faster paths behind the same function."""
