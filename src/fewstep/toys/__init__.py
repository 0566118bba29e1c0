"""Small language models from nothing: an invented world to know, a vocabulary of words, training by transformers."""
