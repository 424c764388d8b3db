"""How good a network is: metrics, tables, plots, and an evaluator that follows a training run."""
