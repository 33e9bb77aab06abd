"""A language model as a judge: behind any OpenAI-compatible endpoint, or in an engine that its host provides."""
