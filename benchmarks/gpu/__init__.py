"""The measurements on a GPU, in the way of the others: side by side, in turns, in one run.

``python -m benchmarks.gpu`` needs a GPU and says so where there is none. With ``--emulated`` the
programs run on CUDA as the tests emulate it: that shows that they work, its times mean nothing.
"""
