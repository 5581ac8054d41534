"""reslab: pretrain language models under interchangeable residual streams."""

__version__ = "0.2.0"
