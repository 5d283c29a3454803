"""Training: token blocks in, checkpoints and a scored model out.

`run.py` tells the story of a run in one function. `setup.py` decides how the model of
`model.py` is trained. `trainer.py`, with its `callbacks.py`, trains it and evaluates it, with
the scores of `task_scores.py`. `final_model.py` scores and saves the result.

    step/          one optimizer step: micro-batches, attention, loss
    optimization/  optimizer, schedule, averaging, divergence
    record/        files of a run: checkpoints, record, model card, timing, W&B logs
"""
