//! Opcodes of memory accesses and `mma`.

use super::decode::{Decoder, RegisterFile};
use super::opcodes::{OpcodeReader, element_type, space};
use super::opcodes_async::{bulk, immediate};
use super::program::{Address, Atomic, MatrixType, Op, Reg, Space};
use super::syntax::{Operand, Result, error};

/// Cache hints, which have no effect here.
const HINTS: [&str; 9] = ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::no_allocate", "L1::evict_last"];

pub(super) fn decode(d: &mut Decoder, p: &mut OpcodeReader<'_>, name: &str) -> Result<Op> {
    match name {
        "ld" => load(d, p),
        "st" => store(d, p),
        "atom" | "red" => atomic(d, p, name == "atom"),
        "cp" => copy(d, p),
        "mma" => mma(d, p),
        "mapa" => map_rank(d, p),
        _ => load_matrix(d, p, name == "ldmatrix"),
    }
}

/// The registers of a scalar or vector operand.
fn vector<'a>(p: &OpcodeReader<'_>, operand: &'a Operand, count: usize) -> Result<&'a [Operand]> {
    match operand {
        Operand::Vector(parts) if parts.len() == count && count > 1 => Ok(parts),
        Operand::Vector(_) => error(p.line, format!("expected a vector of {count} registers")),
        one if count == 1 => Ok(std::slice::from_ref(one)),
        _ => p.unknown(),
    }
}

fn width(p: &mut OpcodeReader<'_>) -> usize {
    if p.take("v2") {
        2
    } else if p.take("v4") {
        4
    } else {
        1
    }
}

/// An address: 64-bit for global memory, 32-bit or 64-bit for shared memory.
fn address(d: &mut Decoder, operand: &Operand, space: Space) -> Result<Address> {
    let address = d.address(operand)?;
    if space == Space::Global && !address.wide {
        return error(d.line, "a global address must be 64-bit");
    }
    Ok(address)
}

fn load(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    if p.take("param") {
        let (element, file) = element_type(p)?;
        p.done(2)?;
        let (offset, bytes) = d.parameter_at(&ops[1])?;
        if u32::from(element.bytes) != bytes {
            return error(p.line, format!("{} bytes are read from a parameter of {bytes}", element.bytes));
        }
        let target = d.target(&ops[0], file)?;
        return Ok(Op::Parameter { d: target, offset, wide: file == RegisterFile::Bits64 });
    }
    if p.take("shared::cluster") {
        let count = width(p);
        let (element, file) = element_type(p)?;
        p.done(2)?;
        if element.bytes != 4 {
            return error(p.line, "of a cluster's shared memory only 32-bit elements are loaded here");
        }
        let at = address(d, &ops[1], Space::Shared)?;
        let to = vector(p, &ops[0], count)?.iter().map(|o| d.sink(o, file)).collect::<Result<Vec<_>>>()?;
        return Ok(Op::LoadCluster { element, to, at });
    }
    _ = p.take("volatile");
    let space = space(p)?;
    _ = p.take("nc");
    _ = HINTS.iter().any(|hint| p.take(hint));
    let count = width(p);
    let (element, file) = element_type(p)?;
    p.done(2)?;
    let at = address(d, &ops[1], space)?;
    let to = vector(p, &ops[0], count)?.iter().map(|o| d.sink(o, file)).collect::<Result<Vec<_>>>()?;
    Ok(Op::Load { space, element, to, at })
}

fn store(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    _ = p.take("volatile");
    let space = space(p)?;
    _ = HINTS.iter().any(|hint| p.take(hint));
    let count = width(p);
    let (element, file) = element_type(p)?;
    p.done(2)?;
    let at = address(d, &ops[0], space)?;
    let from = vector(p, &ops[1], count)?.iter().map(|o| d.source(o, file)).collect::<Result<Vec<Reg>>>()?;
    Ok(Op::Store { space, element, from, at })
}

fn atomic(d: &mut Decoder, p: &mut OpcodeReader<'_>, returns: bool) -> Result<Op> {
    let ops = p.operands;
    let _order = p.take("relaxed") || p.take("acquire") || p.take("release") || p.take("acq_rel");
    let _scope = p.take("cta") || p.take("gpu") || p.take("sys");
    let space = space(p)?;
    let name = p.part()?;
    let (kind, _) = p.kind()?;
    let atomic = match (name, kind) {
        ("add", "u32" | "s32") => Atomic::Add,
        ("add", "f32") => Atomic::AddF32,
        ("min", "u32") => Atomic::MinUnsigned,
        ("min", "s32") => Atomic::MinSigned,
        ("max", "u32") => Atomic::MaxUnsigned,
        ("max", "s32") => Atomic::MaxSigned,
        ("and", "b32") => Atomic::And,
        ("or", "b32") => Atomic::Or,
        ("xor", "b32") => Atomic::Xor,
        ("exch", "b32") if returns => Atomic::Exchange,
        ("cas", "b32") if returns => Atomic::CompareAndSwap,
        _ => return p.unknown(),
    };
    let first = usize::from(returns);
    let two = atomic == Atomic::CompareAndSwap;
    p.done(first + 2 + usize::from(two))?;
    let target = if returns { Some(d.target(&ops[0], RegisterFile::Bits32)?) } else { None };
    let at = address(d, &ops[first], space)?;
    let a = d.r32(&ops[first + 1])?;
    let b = if two { d.r32(&ops[first + 2])? } else { a };
    Ok(Op::Atomic { atomic, space, d: target, at, a, b })
}

/// `mapa.shared::cluster.u32`
fn map_rank(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    if !p.take("shared::cluster") || !p.take("u32") {
        return p.unknown();
    }
    p.done(3)?;
    let (a, rank) = (d.r32(&ops[1])?, d.r32(&ops[2])?);
    Ok(Op::MapRank { d: d.target(&ops[0], RegisterFile::Bits32)?, a, rank })
}

/// `cp.async` and `cp.async.bulk`.
fn copy(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    if !p.take("async") {
        return p.unknown();
    }
    if p.take("bulk") {
        return bulk(d, p);
    }
    if p.take("commit_group") {
        p.done(0)?;
        return Ok(Op::CommitAsync);
    }
    if p.take("wait_all") {
        p.done(0)?;
        return Ok(Op::WaitAsync(None));
    }
    if p.take("wait_group") {
        p.done(1)?;
        return Ok(Op::WaitAsync(Some(immediate(p, &ops[0])?)));
    }
    let whole = p.take("cg");
    if !whole && !p.take("ca") || !(p.take("shared") || p.take("shared::cta")) || !p.take("global") {
        return p.unknown();
    }
    _ = p.take("L2::64B") || p.take("L2::128B") || p.take("L2::256B");
    p.done(if ops.len() == 4 { 4 } else { 3 })?;
    let bytes = immediate(p, &ops[2])?;
    if !(bytes == 16 || !whole && (bytes == 4 || bytes == 8)) {
        return error(p.line, format!("cp.async does not copy {bytes} bytes"));
    }
    let to = address(d, &ops[0], Space::Shared)?;
    let from = address(d, &ops[1], Space::Global)?;
    let source_bytes = if ops.len() == 4 { Some(d.r32(&ops[3])?) } else { None };
    Ok(Op::CopyAsync { to, from, bytes, source_bytes })
}

fn load_matrix(d: &mut Decoder, p: &mut OpcodeReader<'_>, loads: bool) -> Result<Op> {
    let ops = p.operands;
    if !p.take("sync") || !p.take("aligned") || !p.take("m8n8") {
        return p.unknown();
    }
    let count = if p.take("x4") {
        4
    } else if p.take("x2") {
        2
    } else if p.take("x1") {
        1
    } else {
        0
    };
    let transposed = p.take("trans");
    if count == 0 || !(p.take("shared") || p.take("shared::cta")) || !p.take("b16") {
        return p.unknown();
    }
    p.done(2)?;
    let (registers, at) = if loads { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
    let at = address(d, at, Space::Shared)?;
    let parts = match registers {
        Operand::Vector(parts) if parts.len() == count => parts,
        _ => return error(p.line, format!("expected a vector of {count} registers")),
    };
    if loads {
        let to = parts.iter().map(|o| d.target(o, RegisterFile::Bits32)).collect::<Result<Vec<_>>>()?;
        return Ok(Op::LoadMatrix { to, transposed, at });
    }
    let from = parts.iter().map(|o| d.r32(o)).collect::<Result<Vec<_>>>()?;
    Ok(Op::StoreMatrix { from, transposed, at })
}

/// `mma.sync.aligned.m16n8kK.row.col.f32.T.T.f32`
fn mma(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    if !p.take("sync") || !p.take("aligned") {
        return p.unknown();
    }
    let shape = p.part()?;
    let layout = p.take("row") && p.take("col") && p.take("f32");
    let (a, b) = (p.part()?, p.part()?);
    if !layout || a != b || !p.take("f32") {
        return p.unknown();
    }
    // Element type, depth, and registers per thread of A and B.
    let (element, depth, registers) = match (a, shape) {
        ("f16", "m16n8k16") => (MatrixType::F16, 16, [4, 2]),
        ("bf16", "m16n8k16") => (MatrixType::Bf16, 16, [4, 2]),
        ("f16", "m16n8k8") => (MatrixType::F16, 8, [2, 1]),
        ("bf16", "m16n8k8") => (MatrixType::Bf16, 8, [2, 1]),
        ("tf32", "m16n8k8") => (MatrixType::Tf32, 8, [4, 2]),
        ("tf32", "m16n8k4") => (MatrixType::Tf32, 4, [2, 1]),
        _ => return p.unknown(),
    };
    p.done(4)?;
    let mut sources = |operand: &Operand, count: usize| -> Result<Vec<Reg>> {
        match operand {
            Operand::Vector(parts) if parts.len() == count => parts.iter().map(|o| d.r32(o)).collect(),
            Operand::Name(_) if count == 1 => Ok(vec![d.r32(operand)?]),
            _ => error(p.line, format!("expected a fragment of {count} registers")),
        }
    };
    let (mut a, mut b) = (sources(&ops[1], registers[0])?, sources(&ops[2], registers[1])?);
    let c = sources(&ops[3], 4)?;
    a.resize(4, a[0]);
    b.resize(2, b[0]);
    let Operand::Vector(parts) = &ops[0] else { return p.unknown() };
    let to = parts.iter().map(|o| d.target(o, RegisterFile::Bits32)).collect::<Result<Vec<_>>>()?;
    let array = |v: Vec<Reg>| <[Reg; 4]>::try_from(v).or_else(|_| error(p.line, "the accumulator has 4 registers"));
    Ok(Op::Mma { element, depth, d: array(to)?, a: array(a)?, b: [b[0], b[1]], c: array(c)? })
}
