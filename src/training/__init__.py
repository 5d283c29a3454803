"""Token blocks in, checkpoints out.

`model` builds the network, `trainer` and its `callbacks` train and evaluate it,
`checkpoints` says which of what was saved is whole, `run_record` which run a directory holds,
`finish` scores and saves the result, `model_card` describes it, `wandb_logging` sends it to
Weights & Biases.
"""
