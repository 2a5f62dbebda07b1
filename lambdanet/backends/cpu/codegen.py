"""Kernels as Python that writes LLVM code on vectors; llvmlite compiles it for the machine it runs on.

No compiler is needed, at installation or later. A kernel holds its accumulators in registers, which
neither numpy nor what numba makes of plain loops does.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence

import llvmlite.binding as llvm
from llvmlite import ir

from lambdanet.backends.cpu import compile_cache

FLOAT, LONG = ir.FloatType(), ir.IntType(64)
CACHE_LINE = 64  # bytes
Offset = int | ir.Value


class Kernel:
    """The body of one function of float arrays, written instruction by instruction."""

    def __init__(self, module: ir.Module, name: str, arrays: list[str], lanes: int) -> None:
        """Begin the function `name`, which takes a pointer for each of `arrays`."""
        self.lanes, self.vector = lanes, ir.VectorType(FLOAT, lanes)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType()] * len(arrays))
        self.function = ir.Function(module, kind, name)
        for argument, label in zip(self.function.args, arrays, strict=True):
            argument.name = label
            argument.add_attribute("noalias")
        self.arrays = dict(zip(arrays, self.function.args, strict=True))
        self.entry = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.build = ir.IRBuilder(self.function.append_basic_block("body"))
        self.module, self.streams = module, False

    def finish(self) -> None:
        """End the function."""
        self.entry.branch(self.function.blocks[1])
        if self.streams:
            self.build.fence("seq_cst")
        self.build.ret_void()

    # Places: an array's name and an offset in floats.
    def sum(self, *terms: Offset | tuple[Offset, int]) -> Offset:
        """Add offsets; (offset, stride) stands for their product."""
        constant, total = 0, None
        for term in terms:
            offset, stride = term if isinstance(term, tuple) else (term, 1)
            if isinstance(offset, int):
                constant += offset * stride
                continue
            value = self.build.mul(offset, LONG(stride)) if isinstance(term, tuple) else offset
            total = value if total is None else self.build.add(total, value)
        if total is None:
            return constant
        return self.build.add(total, LONG(constant)) if constant else total

    def at(self, array: str, *place: Offset | tuple[Offset, int]) -> ir.Value:
        """The pointer to a place."""
        offset = self.sum(*place)
        index = LONG(offset) if isinstance(offset, int) else offset
        return self.build.gep(self.arrays[array], [index], source_etype=FLOAT)

    def again(self, array: str) -> str:
        """Another name of an array by which, where registers are few, what one held is loaded again."""
        if _long_registers():
            return array
        kind = ir.FunctionType(ir.PointerType(), [ir.PointerType()])
        other = f"{array}'"
        self.arrays[other] = self.build.asm(kind, "", "=r,0", [self.arrays[array]], False)
        return other

    def get(self, array: str, *place: Offset | tuple[Offset, int]) -> ir.Value:
        """One number."""
        return self.build.load(self.at(array, *place), typ=FLOAT, align=4)

    def put(self, value: ir.Value, array: str, *place: Offset | tuple[Offset, int]) -> None:
        """Write one number."""
        self.build.store(value, self.at(array, *place), align=4)

    def load(self, array: str, *place: Offset | tuple[Offset, int]) -> ir.Value:
        """A vector of consecutive values; the place is a multiple of the lanes."""
        return self.build.load(self.at(array, *place), typ=self.vector, align=4 * self.lanes)

    def store(self, value: ir.Value, array: str, *place: Offset | tuple[Offset, int]) -> None:
        """Write a vector; the place is a multiple of the lanes."""
        self.store_to(value, self.at(array, *place))

    def store_to(self, value: ir.Value, pointer: ir.Value) -> ir.Instruction:
        """Write a vector to a pointer of `at`, at a multiple of the lanes."""
        return self.build.store(value, pointer, align=4 * self.lanes)

    def stream(self, value: ir.Value, pointer: ir.Value) -> None:
        """Write a vector past the caches, where it is a whole line of them; `finish` waits for it."""
        written = self.store_to(value, pointer)
        if 4 * self.lanes == CACHE_LINE:
            written.set_metadata("nontemporal", self.module.add_metadata([ir.IntType(32)(1)]))
            self.streams = True

    def splat(self, array: str, *place: Offset | tuple[Offset, int]) -> ir.Value:
        """One value in all lanes."""
        return self.broadcast(self.get(array, *place))

    def gather(self, array: str, stride: int, *place: Offset | tuple[Offset, int]) -> ir.Value:
        """A value of each lane's image, `stride` floats apart."""
        result = ir.Constant(self.vector, ir.Undefined)
        for lane in range(self.lanes):
            scalar = self.get(array, *place, lane * stride)
            result = self.build.insert_element(result, scalar, ir.IntType(32)(lane))
        return result

    def scatter(self, value: ir.Value, array: str, stride: int, *place: Offset | tuple[Offset, int]) -> None:
        """Write each lane's value to its image."""
        for lane in range(self.lanes):
            scalar = self.build.extract_element(value, ir.IntType(32)(lane))
            self.put(scalar, array, *place, lane * stride)

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """As many vectors as there are lanes, taken as a matrix, the other way round."""
        rows, L = list(rows), self.lanes
        for bit in (1 << i for i in range(L.bit_length() - 1)):
            upper = [j if not j & bit else L + (j ^ bit) for j in range(L)]
            lower = [L + j if j & bit else j | bit for j in range(L)]
            for i in (i for i in range(L) if not i & bit):
                pair = rows[i], rows[i | bit]
                rows[i], rows[i | bit] = (
                    self.build.shuffle_vector(*pair, _indices(of)) for of in (upper, lower)
                )
        return rows

    def constant(self, value: float) -> ir.Value:
        """A number in all lanes."""
        return ir.Constant(self.vector, [ir.Constant(FLOAT, value)] * self.lanes)

    def store_sum(self, value: ir.Value, array: str, *place: Offset | tuple[Offset, int]) -> None:
        """Write the sum over the lanes, added in a fixed order."""
        while value.type.count > 1:
            half = value.type.count // 2
            halves = range(half), range(half, 2 * half)
            parts = [self.build.shuffle_vector(value, value, _indices(one)) for one in halves]
            value = self.build.fadd(*parts)
        self.put(self.build.extract_element(value, ir.IntType(32)(0)), array, *place)

    # Arithmetic.
    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """A * b + c, rounded once."""
        return self._call("llvm.fma", a, b, c)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.build.fadd(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.build.fsub(a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.build.fmul(a, b)

    def neg(self, a: ir.Value) -> ir.Value:
        return self.build.fneg(a)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.build.fdiv(a, b)

    def max(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._call("llvm.maximum", a, b)

    def at_least(self, x: ir.Value, bound: ir.Value) -> ir.Value:
        """The larger of x and a bound; one instruction, where `max` takes more, for NaN and the sign of 0."""
        return self.build.select(self.build.fcmp_ordered(">", bound, x), bound, x)

    def at_most(self, x: ir.Value, bound: ir.Value) -> ir.Value:
        """The smaller of x and a bound, likewise; both leave x as it is where that is NaN."""
        return self.build.select(self.build.fcmp_ordered("<", bound, x), bound, x)

    def where_positive(self, condition: ir.Value, value: ir.Value) -> ir.Value:
        """`value` where `condition` is above 0 or no number, else 0."""
        zero = self.constant(0.0)
        return self.build.select(self.build.fcmp_unordered(">", condition, zero), value, zero)

    def exp(self, x: ir.Value) -> ir.Value:
        """e^x to 2 units in the last place, for x at most 88; below -87 it is 0 or next to it."""
        x = self.at_least(x, self.constant(-87.3))
        n = self._call("llvm.roundeven", self.mul(x, self.constant(1.4426950408889634)))
        x = self.fma(n, self.constant(-0.693359375), x)  # ln 2 in two parts (Cody and Waite)
        x = self.fma(n, self.constant(2.12194440e-4), x)
        y = self.constant(1 / 5040)
        for factorial in (720, 120, 24, 6, 2, 1, 1):
            y = self.fma(y, x, self.constant(1 / factorial))
        integers = ir.VectorType(ir.IntType(32), self.lanes)
        exponent = self.build.fptosi(n, integers)
        shift = ir.Constant(integers, [ir.IntType(32)(23)] * self.lanes)
        bits = self.build.add(self.build.bitcast(y, integers), self.build.shl(exponent, shift))
        return self.build.bitcast(bits, self.vector)

    def sigmoid(self, x: ir.Value) -> ir.Value:
        """1 / (1 + e^-x)."""
        # Far below -87 the exponential would overflow; the sigmoid is 0 there in any case.
        exponential = self.exp(self.at_most(self.neg(x), self.constant(87.0)))
        return self.div(self.constant(1.0), self.add(self.constant(1.0), exponential))

    def _call(self, name: str, *arguments: ir.Value) -> ir.Value:
        full = f"{name}.v{self.lanes}f32"
        kind = ir.FunctionType(self.vector, [self.vector] * len(arguments))
        function = self.module.globals.get(full) or ir.Function(self.module, kind, full)
        return self.build.call(function, arguments)

    def broadcast(self, scalar: ir.Value) -> ir.Value:
        """A number in all lanes."""
        zero = ir.IntType(32)(0)
        one = self.build.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, zero)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        return self.build.shuffle_vector(one, one, mask)

    # Control.
    @contextlib.contextmanager
    def loop(self, stop: Offset, start: Offset = 0, step: int = 1) -> Iterator[ir.Value]:
        """`for i in range(start, stop, step)`, i as an offset."""
        start, stop = (LONG(x) if isinstance(x, int) else x for x in (start, stop))
        before = self.build.block
        head, body, after = (self.function.append_basic_block(n) for n in ("head", "loop", "after"))
        self.build.branch(head)
        self.build.position_at_end(head)
        i = self.build.phi(LONG)
        i.add_incoming(start, before)
        self.build.cbranch(self.build.icmp_signed("<", i, stop), body, after)
        self.build.position_at_end(body)
        yield i
        i.add_incoming(self.build.add(i, LONG(step)), self.build.block)
        self.build.branch(head)
        self.build.position_at_end(after)

    def chunks(self, count: int, size: int, start: Offset = 0) -> Iterator[tuple[Offset, int]]:
        """Offsets and sizes that cover range(start, count): a loop over whole chunks, then the rest."""
        whole = count - count % size
        if whole:
            with self.loop(whole, start, size) as first:
                yield first, size
        if count % size:
            yield whole, count % size

    def least(self, a: Offset, b: Offset) -> ir.Value:
        """The smaller of two offsets."""
        return self._choose("<", a, b)

    def greatest(self, a: Offset, b: Offset) -> ir.Value:
        """The larger of two offsets."""
        return self._choose(">", a, b)

    def multiple(self, a: Offset, of: int) -> Offset:
        """The largest multiple of a number that is not above an offset."""
        return a - a % of if isinstance(a, int) else self.build.sub(a, self.build.urem(a, LONG(of)))

    def _choose(self, sign: str, a: Offset, b: Offset) -> ir.Value:
        a, b = (LONG(x) if isinstance(x, int) else x for x in (a, b))
        return self.build.select(self.build.icmp_signed(sign, a, b), a, b)

    def registers(self, count: int, value: ir.Value | None = None) -> list["Register"]:
        """Vectors that a loop can change, from `value` or 0 on."""
        return [Register(self, self.constant(0.0) if value is None else value) for _ in range(count)]


def _indices(of: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(of)), list(of))


class Register:
    """A vector that a loop can change."""

    def __init__(self, kernel: Kernel, value: ir.Value) -> None:
        self.kernel = kernel
        self.slot = kernel.entry.alloca(kernel.vector)
        self.set(value)

    def get(self) -> ir.Value:
        return self.kernel.build.load(self.slot, typ=self.kernel.vector)

    def set(self, value: ir.Value) -> None:
        self.kernel.build.store(value, self.slot)

    def fma(self, a: ir.Value, b: ir.Value) -> None:
        """Add a * b."""
        self.set(self.kernel.fma(a, b, self.get()))

    def add(self, a: ir.Value) -> None:
        self.set(self.kernel.add(self.get(), a))


@functools.cache
def lanes() -> int:
    """How many floats a kernel works on at a time: 16 with AVX-512's 32 long registers, else 8."""
    return 16 if _long_registers() else 8


@functools.cache
def accumulators() -> int:
    """How many a loop can hold beside what it multiplies: 24 of AVX-512's 32 registers, else 12 of 16."""
    return 24 if _long_registers() else 12


def evenly(count: int, most: int) -> int:
    """The size of as few chunks of at most `most` as there can be, all of one size but for the last."""
    return -(-count // -(-count // most))


def _long_registers() -> bool:
    return bool(llvm.get_host_cpu_features().get("avx512f"))


def compile_kernels(
    kernels: dict[str, tuple[list[str], Callable[[Kernel], None]]],
    lanes: int,
    request: str,
) -> dict[str, Callable[..., None]]:
    """Compile kernels for this processor, or take what an earlier process compiled.

    Args:
        kernels: by name, the names of the arrays and what writes the body.
        lanes: floats in a vector.
        request: names, beside this package's text, all that the bodies follow from.

    Returns:
        Functions of the arrays' addresses, in order; they let go of the GIL.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    code = compile_cache.find(request)
    if code is None:
        code = _machine_code(kernels, lanes, target)
        compile_cache.keep(request, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)  # the code lives as long as the engine
    return {
        name: ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arrays))(engine.get_function_address(name))
        for name, (arrays, _) in kernels.items()
    }


def _machine_code(
    kernels: dict[str, tuple[list[str], Callable[[Kernel], None]]],
    lanes: int,
    target: llvm.TargetMachine,
) -> bytes:
    module = ir.Module()
    module.triple = llvm.get_default_triple()
    for name, (arrays, write) in kernels.items():
        kernel = Kernel(module, name, arrays, lanes)
        write(kernel)
        kernel.finish()
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False  # the vectors are there already
    options.loop_unrolling = True
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(compiled, passes)
    return target.emit_object(compiled)


def trial() -> str | None:
    """Compile and run a kernel: None, or why that does not work on this machine."""
    source, target = ((ctypes.c_float * 24)(*range(24)) for _ in range(2))
    places = [-(-ctypes.addressof(array) // 64) * 64 for array in (source, target)]

    def write(k: Kernel) -> None:
        k.store(k.fma(k.load("x", 0), k.constant(2.0), k.constant(1.0)), "y", 0)

    try:
        compile_kernels({"trial": (["x", "y"], write)}, 8, "trial")["trial"](*places)
    except (OSError, RuntimeError) as error:
        return f"llvmlite cannot compile: {error}"
    result, given = ((ctypes.c_float * 8).from_address(place) for place in reversed(places))
    if list(result) != [2 * value + 1 for value in given]:
        return "llvmlite's code computes wrong values"
    return None


_engines: list[llvm.ExecutionEngine] = []
