"""Writers of candidates that ask a language model: a teacher, and whoever revises the policy's answers."""
