"""CUDA: device memory, tensors of other libraries, and copies that the event loop awaits."""
