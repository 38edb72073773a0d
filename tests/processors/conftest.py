"""Without torchvision the processors that need it are not even collected."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torchvision") else ["test_with_torchvision.py"]
