"""How many labels a self-improvement loop is worth: see docs/label-efficiency.md."""
