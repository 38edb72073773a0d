"""Reinforce each word of the own answers by how well it fits the picture.

FiSAO: Cui et al., arXiv 2410.14148.
**Same**: own answers; an encoder scores words against the picture; a word earns what lies beyond a
margin from the mean of right words (`right`) or below that of hallucinated ones (`wrong`); a reward
and a clipped surrogate a token; KL to the seed; no label.
**Differs**: any dual encoder, not the model's own tower; whole words, each of its tokens earning
the same; no value head: the reward is the advantage; hyper-parameters are ours. `right` and `wrong`
have to be measured (token_fit.baselines) and given.
"""
from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.token_rewards import TokenRewards
from selfloop.organize.verify.similarity import encoder_named
from selfloop.organize.verify.token_fit import TokenFit
from selfloop.roles import Optim, Sampling, Verifier

CLIP = "openai/clip-vit-large-patch14-336"


def fisao(metric: Verifier, *, right: float = 0.2, wrong: float = 0.2, margin: float = 0.0,
          encoder: str = CLIP, words: tuple[str, ...] = (), images: str = "", scale: float = 1.0,
          n: int = 4, temperature: float = 1.0, max_new_tokens: int = 128, samples: int = 64,
          steps: int = 20, iterations: int = 5, lr: float = 1e-6, batch: int = 1024,
          kl: float = 0.01, seed: int = 0) -> Loop:
    """`encoder` is a CLIP or SigLIP folder, or module:name of an Encoder; `metric` judges dev."""
    fit = TokenFit(right, wrong, margin, encoder_named(encoder), words, images=images)
    return Loop(
        name="fisao", verifier=fit,
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=TokenRewards(scale)), loss=GRPO(kl=kl),
            optim=Optim(lr=lr, batch=batch, reference="seed"))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
