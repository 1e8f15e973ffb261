"""OpenAI's files and batches: what clients upload, and thousands of requests answered later."""
