"""Iterative DPO on own sentences, scored by likelihood and the picture (CSR, arXiv 2405.14622).

**Same**: a tree of sentences, five diverse beams each, the best and the two worst gone on with;
each scored by the model's likelihood (1 - `weight`) and a dual encoder's view of that sentence and
the picture; best path preferred to worst; DPO against the weights that drew them; three rounds; no
label. **Differs**: scores are mixed as in the paper (`ranks`: as in the code); broken text is
dropped as whole paths, by SENA's limits besides CSR's; "!", "?" and their like end one too.
"""
from selfloop.collect.beams import SentenceTree
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.preference import DPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.degenerate import Degenerate
from selfloop.organize.refine.pairs import BestVersusWorst, Pairs
from selfloop.organize.verify.calibrated import Calibrated
from selfloop.organize.verify.similarity import encoder_named
from selfloop.roles import Optim, Sampling, Verifier
from selfloop.sampling import SENTENCE_ENDS

CLIP, BROKEN = "openai/clip-vit-large-patch14-336", Degenerate()


def csr(metric: Verifier, *, encoder: str = CLIP, weight: float = 0.9, ranks: bool = False,
        width: int = 5, depth: int = 15, stop: tuple[str, ...] = SENTENCE_ENDS,
        temperature: float = 0.0, diversity: float = 3.0, shortest: int = 4,
        sentence_tokens: int = 70, images: str = "", lr: float = 1e-7, samples: int | None = None,
        iterations: int = 3, updates: int | None = None, epochs: int = 1, batch: int = 8,
        beta: float = 0.1, broken: Degenerate = BROKEN, seed: int = 0) -> Loop:
    """`encoder`: a CLIP or SigLIP folder, or module:name of one; `broken`: text that is dropped."""
    tree = SentenceTree(width=width, depth=depth, stop=stop, sentence_tokens=sentence_tokens,
                        temperature=temperature, diversity=diversity, shortest=shortest)
    return Loop(
        name="csr", sampler=tree,
        verifier=Calibrated(encoder_named(encoder), weight, ranks, stop, images),
        learn={"solver": Learn(
            organizer=Chain((broken,), Pairs(BestVersusWorst(), margins=False)), loss=DPO(beta),
            optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine",
                        warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(temperature=0.0)),
        iterations=iterations, samples=samples, seed=seed)
