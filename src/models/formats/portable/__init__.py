"""Code that an exported folder carries, so that transformers loads it where this project is not installed.

    configuration.py, modeling.py   the classes that transformers builds: `configuration_reslab.py`, `modeling_reslab.py`
    fold.py                         a module with every operation bound to its PyTorch reference: no C++, no Triton
    modules.py                      top-level definitions of a module, and the names that each of them needs
    bundle.py                       the definitions that one model needs, as flat files beside its weights

A folder gets the definitions that its own model reaches, as they stand in this project, and nothing else. transformers
copies the Python files that a module imports by `from .name import ...`, from one folder: `src/residual/base.py` becomes
`residual_base.py`. Only transformers with `trust_remote_code=True` imports these files; this project reads the
configuration and the weights alone.

Source: Hugging Face transformers 5.23, dynamic_module_utils.py (which files it copies and how it imports them).
"""
