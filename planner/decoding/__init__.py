"""Base model, adapter, catalogue trie, constrained decoding and the registered model."""
