"""Small language models trained from scratch: generated tasks and prose, a vocabulary of words, transformers' Trainer."""
