"""A guided teacher: what contrastive decoding draws with the picture trains the plain model.

M3ID + DPO: Favero et al., arXiv 2403.14003; VCD: Leng et al., arXiv 2311.16922; masked attention:
BDHS, arXiv 2407.02477.
**Same**: `m3id`: chosen is decoded away from what the text alone makes likely, more so as it grows;
rejected is drawn without the picture; `vcd`: away from the picture at diffusion step 500 (alpha 1,
plausibility .1), rejected from that picture; DPO under the plain decoding; reads no label.
**Differs**: the rate .02 is chosen by us; VCD itself trains nothing; `masked` takes plain answers
and rejects what is written on with the picture hidden; `imitate` is SFT on the chosen alone."""
from selfloop.collect.masked import MaskedAttention
from selfloop.collect.mixed import NO_PICTURE, MixedDecoding
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.pair_filters import Distinct
from selfloop.organize.refine.pairs import Constructed, Pairs
from selfloop.roles import Optim, Sampling, SelfloopError, Verifier


def m3id(metric: Verifier, *, decoding: str = "m3id", imitate: bool = False, n: int = 1,
         rate: float = 0.02, temperature: float = 1.0, max_new_tokens: int = 256, seed: int = 0,
         samples: int | None = None, iterations: int = 1, updates: int | None = None,
         epochs: int = 1, batch: int = 64, lr: float = 1e-6, beta: float = 0.1) -> Loop:
    """`decoding`: m3id, vcd or masked. `metric` judges dev; nothing judges what is drawn."""
    if decoding not in ("m3id", "vcd", "masked"):
        raise SelfloopError(f"decoding={decoding!r}: expected m3id, vcd or masked")
    vcd = decoding == "vcd"
    masked = MaskedAttention(n=n, temperature=temperature, max_new_tokens=max_new_tokens)
    mixed = MixedDecoding(n=n, mean=1.0, spread=0.0, against="diffusion" if vcd else NO_PICTURE,
                          away=float(vcd), rate=0.0 if vcd else rate, floor=0.1 if vcd else 0.0,
                          temperature=temperature, max_new_tokens=max_new_tokens)
    maker = Pairs(Constructed(), (Distinct(contained=False, bare=()),))
    optim = Optim(lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine", warmup=5)
    return Loop(name="m3id", sampler=masked if decoding == "masked" else mixed, learn={
        "solver": Learn(organizer=Chain(maker=maker), optim=optim,
                        loss=SFT("chosen") if imitate else DPO(beta))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
