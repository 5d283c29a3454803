"""The one file of predictions."""

import json
from pathlib import Path

from src.entry.collate import Scored, collate
from src.entry.rules import TRACKS


def test_a_part_with_a_wrong_number_of_predictions_is_named_and_left_out(
    tmp_path: Path, caplog
):
    rows = [{"id": f"spr_{number}", "pred": 1.0} for number in range(3)]
    predictions = {"spr": {"predictions": rows}}
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    scored = Scored(tmp_path, {"reading": {"files": ["./predictions.json"]}})
    content = collate(scored, {}, TRACKS["strict-small"])
    assert content["reading"] is None and content["blimp"] is None
    (message,) = caplog.messages
    assert "reading has a wrong number of predictions: spr 3 instead of" in message
