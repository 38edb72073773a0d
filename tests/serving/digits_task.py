"""Runs in the clients' environment: what an lmms-eval task of the questions calls."""

from __future__ import annotations

from PIL import Image

TASK = """\
task: selfloop_digits
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function digits_task.picture
doc_to_text: !function digits_task.question
doc_to_target: answer
process_results: !function digits_task.mark
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
metric_list:
  - metric: concluded
    aggregation: mean
    higher_is_better: true
"""


def picture(doc):
    """The row's picture; lmms-eval sends it as PNG."""
    return [Image.open(doc["path"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    """The prompt, with nothing added."""
    return doc["prompt"]


def mark(doc, results):
    """What stands behind the last "=" is the answer."""
    return {"concluded": float(results[0].rpartition("=")[2].strip() == doc["answer"])}
