"""Training: token blocks in, checkpoints and a scored model out.

`run.py` has one function that shows all stages of a run. `model.py` builds the model, and
`setup.py` decides how it is trained. `trainer.py`, with `callbacks.py`, trains and evaluates it;
`task_scores.py` adds the scores of the tasks. `final_model.py` scores and saves the final model.

    step/          one optimizer step: micro-batches, attention, loss
    optimization/  optimizer, schedule, averaging, divergence
    record/        files of a run: checkpoints, record, model card, timing, W&B logs
"""
