"""Speed, memory and accuracy, compared with PEFT and other programs: ``python -m benchmarks``."""
