"""One loop for every task: order, processes, checkpoints, figures."""
