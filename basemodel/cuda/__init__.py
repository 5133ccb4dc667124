"""What runs on NVIDIA GPUs only. Nothing here is imported on other machines, but by the tests of its Triton kernels."""
