"""Hugging Face directories in and out: names, weights, tokenizer and images."""
