"""How a language model continues a prompt: greedy and sampled decoding with a key-value cache."""
