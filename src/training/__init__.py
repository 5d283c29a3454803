"""Token blocks in, checkpoints out.

`model` builds the network, `trainer` trains and evaluates it, `checkpoints` keeps what was
saved whole, `run_record` says which run a directory holds, `model_card` describes the
result, `wandb_logging` sends it to Weights & Biases.
"""
