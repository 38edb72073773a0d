"""What a run organized, as data that other trainers read: TRL, ms-swift, LLaMA-Factory, verl."""
