"""Speed, memory and accuracy, measured side by side with PEFT and others: ``python -m benchmarks``."""
