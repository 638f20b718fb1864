"""What a program sees of dsm: `attach`, `Node`, arrays, locks, references, errors.

Must not know the manager's inside: it speaks to it by `dsm.wire.control` and the boards of `dsm._native`.
"""
