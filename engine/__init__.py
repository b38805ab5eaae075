"""Tokens out of audio: batching, scheduling, caching and sampling around a model. Knows no text format and no HTTP."""
