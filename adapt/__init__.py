"""Floor 3: learners, the loop, guard, checkpoint and the command line."""
