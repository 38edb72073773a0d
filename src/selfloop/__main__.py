"""`python -m selfloop`, also under `torchrun -m` and `accelerate launch -m`."""

from selfloop.cli import main

if __name__ == "__main__":
    main()
