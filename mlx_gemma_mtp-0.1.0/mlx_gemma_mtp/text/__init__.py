"""Tokens and text: tokenizer, messages, and the channels of a model's output."""
