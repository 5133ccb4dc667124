"""What only an NVIDIA GPU can show: `python -m benchmarks.gpu.run`."""
