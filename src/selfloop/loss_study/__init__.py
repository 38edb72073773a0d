"""Eight losses under one budget, with every arm: see docs/loss-study.md."""
