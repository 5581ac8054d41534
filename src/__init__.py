"""reslab: pretrain language models under interchangeable residual streams."""

__version__ = "0.4.0"
