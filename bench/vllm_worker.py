"""Runs inside vLLM's own environment: draws once for each line it is sent, and counts tokens.

It imports nothing of ours. Usage: python vllm_worker.py JOB.json, then a line on stdin for each
repeat; answers are JSON lines on stdout.
"""

import json
import os
import sys

from PIL import Image


def main() -> None:
    """Load, then serve."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints goes to stderr
    from vllm import LLM, SamplingParams

    with open(sys.argv[1]) as file:
        job = json.load(file)
    count, length = len(job["prompts"]), job["prompt"] + job["answer"]
    llm = LLM(
        job["folder"], dtype=job["dtype"], enable_prefix_caching=True, seed=0,
        max_model_len=length, max_num_seqs=job["group"] * count,
        max_num_batched_tokens=max(8192, length * count),
        limit_mm_per_prompt={"image": len(job["prompts"][0]["pictures"]), "video": 0})
    prompts = [{"prompt": p["text"], "multi_modal_data": {
        "image": [Image.open(path).convert("RGB") for path in p["pictures"]]}}
        for p in job["prompts"]]
    print(json.dumps("ready"), file=answers)
    for number, _ in enumerate(sys.stdin):
        # As after an update of the weights: no old keys, values or picture features; processed
        # pixels stay, as they do on our side.
        llm.reset_prefix_cache()
        llm.llm_engine.reset_encoder_cache()
        outputs = llm.generate(prompts, [SamplingParams(
            n=job["group"], temperature=1.0, max_tokens=job["answer"], ignore_eos=True,
            detokenize=False, seed=1000 * number + i) for i in range(count)], use_tqdm=False)
        print(json.dumps({"read": [len(o.prompt_token_ids) for o in outputs],
                          "drawn": [len(c.token_ids) for o in outputs for c in o.outputs]}),
              file=answers)


if __name__ == "__main__":
    main()
