"""selfloop: multimodal language models that improve themselves, and prove it.

Only the public words live here; each is imported when first used, so that `import selfloop`
loads neither torch nor ray.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "types": "Advantage Branch Context Decision Demonstration Distill Group ImageOp Iteration "
             "Media Message Pair Part Rollout Sample Turn Verdict",
    "roles": "Optim Request Sampling SelfloopError",
    "loop": "Evaluation Learn Loop",
    "running": "run",
    "auditing.audit": "audit",
    "data": "load",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selfloop' has no attribute {name!r}")
    return getattr(import_module(f"selfloop.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
