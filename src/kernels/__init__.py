"""Operations that are faster than PyTorch's: each has a reference, and kernels that compute the same.

A *reference* is the definition of an operation in PyTorch. It is what a reader needs, what tests compare with, and what
runs wherever no kernel does. A *kernel* is C++ (`cpp`, for the CPU, compiled on first use by `cpp_build.py`) or Triton
(`triton`, for a CUDA device). The rest of the project calls the public functions of an operation and never names a
device, a compiler or a backend:

    depth_attention/   attention over all earlier outputs (attnres and its relatives), and sums of them
    hyper_streams/     reads and writes of several residual streams (hyper-connections and their relatives)
    attention/         causal attention on the CPU
    cross_entropy/     the output head with its loss
    fused_blend.py     the stream and the embedding under two learned scalars
    cpu_matmul.py      float32 matrix products on the CPU: oneDNN or torch's default

How a backend is chosen (`dispatch.py`): each operation is an `Operation`. The first time it meets a device, dtype and
sizes, it asks the kernel of that device why it cannot run. The kernel is built, and `verify` compares it with the
reference in float64, in value and gradient, on small random inputs. If anything fails, the reference runs and one line
in the log gives the reason. The decision holds for the process; `python run.py task=check` prints the table of all.
Inside `torch.compile` only kernels that are torch operators run (`custom_op.py`); other operations give the compiler
their reference, which it fuses.

How to add a kernel:
    1. Write `<operation>/reference.py`, and the public functions in `<operation>/__init__.py`.
    2. Write the kernel: a `.cpp` file with `extern "C"` functions and a `cpp_build.Source`, or Triton kernels in a
       module that is imported only where they run. Give it an autograd function, and an operator if a compiler calls it.
    3. Create an `Operation` whose `cpp` or `triton` function returns why the kernel cannot run a case: a limit in one
       sentence, or what `verify` returns. Call the kernel where `backend_for` names it.
    4. Test it against the reference in float64; Triton kernels run on a CPU in Triton's interpreter.

How to switch kernels off: `CXX=none` leaves out all C++ kernels, since there is no such compiler, and
`REGISTRY.without_residual_kernels()` those of residual strategies in one block of code, to measure what they save.

`docs/kernels.md` explains the idea of each kernel with a diagram.
"""
