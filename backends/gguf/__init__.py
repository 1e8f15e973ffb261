"""Reading .gguf files, llama.cpp's format: one file with weights, configuration and tokenizer."""
