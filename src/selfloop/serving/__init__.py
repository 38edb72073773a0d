"""An OpenAI-compatible server around one engine, so that any evaluation tool can ask our models."""
