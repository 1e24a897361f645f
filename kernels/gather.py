"""Rows of a table, straight from device memory into the registers that a product's sums lie in.

Pallas has no such load: neither the copy engine nor its own indexing takes a row number for each lane. This is written
one level below it, for one thread: of the 64 rows a thread has two, and of each 128 columns 32, which
`hopper.fetched_columns` put in four runs of 16 bytes, so that a row's four threads read 64 bytes in a row.
"""

from typing import Any

import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

RUNS = 4  # loads of 16 bytes a row, each four pairs of columns


def rows(table: Any, numbers: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
    """See `hopper.fetch`; table is a memref, numbers lie as a column of a product's sums does."""
    _, columns = ir.MemRefType(table.type).shape
    i32, i64, bf16 = ir.IntegerType.get_signless(32), ir.IntegerType.get_signless(64), ir.BF16Type.get()
    pair, run = ir.VectorType.get((2,), bf16), ir.VectorType.get((4,), i32)
    layout = mgpu.WGMMA_LAYOUT
    found = np.empty(layout.registers_shape((64, columns)), object)
    pairs = found.reshape(columns // 8, 2)  # by place in the columns, and by row
    base = mgpu.utils.memref_ptr(table)
    place = arith.muli(arith.remui(mgpu.utils.thread_idx(), mgpu.c(4, i32)), mgpu.c(8, i32))
    for half, number in enumerate(numbers.registers.flat):
        if isinstance(number.type, ir.VectorType):
            number = vector.extract(number, dynamic_position=[], static_position=[0])
        start = arith.extui(i64, arith.addi(arith.muli(number, mgpu.c(columns, i32)), place))
        for k in range(RUNS):
            offset = arith.addi(start, mgpu.c(k * columns // RUNS, i64))
            loaded = llvm.load(run, mgpu.utils.getelementptr(base, [offset], bf16), alignment=16)
            for i in range(4):
                word = llvm.extractelement(loaded, mgpu.c(i, i32))
                pairs[RUNS * k + i, half] = llvm.bitcast(pair, word)
    return mgpu.FragmentedArray(_registers=found, _layout=layout, _is_signed=None)
