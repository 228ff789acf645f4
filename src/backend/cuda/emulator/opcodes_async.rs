//! Opcodes of Hopper's asynchronous instructions: `mbarrier`, bulk copies, `wgmma`, proxy fences.

use super::decode::{Decoder, RegisterFile};
use super::opcodes::OpcodeReader;
use super::program::{Bulk, GlobalSide, MatrixType, Mbarrier, MmaAsync, Op, OperandA, Phase, Reg, Wgmma};
use super::syntax::{Operand, Result, error};

/// An immediate integer operand.
pub(super) fn immediate(p: &OpcodeReader<'_>, operand: &Operand) -> Result<u32> {
    match operand {
        Operand::Integer(n) => Ok(*n as u32),
        _ => error(p.line, format!("expected a constant, found {operand:?}")),
    }
}

/// Skips `.acquire`, `.release` or `.relaxed` and a scope; the emulator's order is stronger than all of them.
fn order(p: &mut OpcodeReader<'_>) {
    _ = p.take("acquire") || p.take("release") || p.take("relaxed");
    _ = p.take("cta") || p.take("cluster");
}

fn shared(p: &mut OpcodeReader<'_>) -> Result<()> {
    if p.take("shared") || p.take("shared::cta") { Ok(()) } else { p.unknown() }
}

pub(super) fn mbarrier(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    let name = p.part()?;
    if name == "arrive" {
        let expects = p.take("expect_tx");
        order(p);
        shared(p)?;
        if !p.take("b64") {
            return p.unknown();
        }
        let has_value = expects || ops.len() == 3;
        p.done(2 + usize::from(has_value))?;
        let token = d.sink(&ops[0], RegisterFile::Bits64)?;
        let value = if has_value { Some(d.r32(&ops[2])?) } else { None };
        let (count, bytes) = if expects { (None, value) } else { (value, None) };
        return Ok(Op::Mbarrier { what: Mbarrier::Arrive { token, count, bytes }, at: d.address(&ops[1])? });
    }
    let by_parity = (name == "try_wait" || name == "test_wait") && p.take("parity");
    order(p);
    shared(p)?;
    if !p.take("b64") {
        return p.unknown();
    }
    let (what, at) = match name {
        "init" => {
            p.done(2)?;
            (Mbarrier::Init { count: d.r32(&ops[1])? }, &ops[0])
        }
        "inval" => {
            p.done(1)?;
            (Mbarrier::Invalidate, &ops[0])
        }
        "expect_tx" => {
            p.done(2)?;
            (Mbarrier::Expect { bytes: d.r32(&ops[1])? }, &ops[0])
        }
        "try_wait" | "test_wait" => {
            // The optional fourth operand is a time limit.
            p.done(if name == "try_wait" && ops.len() == 4 { 4 } else { 3 })?;
            let phase = if by_parity {
                Phase::Parity(d.r32(&ops[2])?)
            } else {
                Phase::Token(d.source(&ops[2], RegisterFile::Bits64)?)
            };
            let done = d.target(&ops[0], RegisterFile::Predicate)?;
            (Mbarrier::Wait { suspends: name == "try_wait", done, phase }, &ops[1])
        }
        _ => return p.unknown(),
    };
    Ok(Op::Mbarrier { what, at: d.address(at)? })
}

/// `[map, {x, y}]`
fn tile(d: &mut Decoder, operand: &Operand) -> Result<GlobalSide> {
    let Operand::Tile(map, coordinates) = operand else {
        return error(d.line, format!("expected a tensor map and coordinates, found {operand:?}"));
    };
    let coordinates = coordinates.iter().map(|c| d.r32(c)).collect::<Result<Vec<Reg>>>()?;
    Ok(GlobalSide::Tile { map: d.named(map, RegisterFile::Bits64)?, coordinates })
}

/// `cp.async.bulk`, from the modifier after `bulk` on.
pub(super) fn bulk(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    if p.take("commit_group") {
        p.done(0)?;
        return Ok(Op::Bulk(Bulk::Commit));
    }
    if p.take("wait_group") {
        _ = p.take("read");
        p.done(1)?;
        return Ok(Op::Bulk(Bulk::Wait(immediate(p, &ops[0])?)));
    }
    let rank = if p.take("tensor") { p.part()?.strip_suffix('d').and_then(|n| n.parse::<usize>().ok()) } else { None };
    let loads = p.take("shared::cluster") || p.take("shared::cta") && p.opcode_has("mbarrier::complete_tx::bytes");
    if !p.take("global") {
        return p.unknown();
    }
    if loads {
        _ = p.take("tile");
        let hinted = p.opcode_has("L2::cache_hint");
        if !p.take("mbarrier::complete_tx::bytes") {
            return p.unknown();
        }
        _ = p.take("L2::cache_hint");
        p.done(if rank.is_some() { 3 } else { 4 } + usize::from(hinted))?;
        let to = d.address(&ops[0])?;
        let (from, mbarrier) = if rank.is_some() {
            (tile(d, &ops[1])?, &ops[2])
        } else {
            (GlobalSide::Bytes { at: d.address(&ops[1])?, bytes: d.r32(&ops[2])? }, &ops[3])
        };
        check_rank(d, rank, &from)?;
        return Ok(Op::Bulk(Bulk::Load { to, from, mbarrier: d.address(mbarrier)? }));
    }
    shared(p)?;
    _ = p.take("tile");
    if !p.take("bulk_group") {
        return p.unknown();
    }
    p.done(if rank.is_some() { 2 } else { 3 })?;
    let from = d.address(&ops[1])?;
    let to = if rank.is_some() {
        tile(d, &ops[0])?
    } else {
        GlobalSide::Bytes { at: d.address(&ops[0])?, bytes: d.r32(&ops[2])? }
    };
    check_rank(d, rank, &to)?;
    Ok(Op::Bulk(Bulk::Store { to, from }))
}

/// Checks the number of coordinates against the opcode's dimensions.
fn check_rank(d: &Decoder, rank: Option<usize>, side: &GlobalSide) -> Result<()> {
    match (rank, side) {
        (Some(rank), GlobalSide::Tile { coordinates, .. }) if coordinates.len() != rank => {
            error(d.line, format!("{} coordinates for {rank} dimensions", coordinates.len()))
        }
        _ => Ok(()),
    }
}

/// `wgmma.mma_async.sync.aligned.m64nNkK.f32.T.T`, `wgmma.fence`, `wgmma.commit_group` and `wgmma.wait_group`.
pub(super) fn wgmma(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    let name = p.part()?;
    if !p.take("sync") || !p.take("aligned") {
        return p.unknown();
    }
    match name {
        "fence" | "commit_group" => {
            p.done(0)?;
            return Ok(Op::Wgmma(if name == "fence" { Wgmma::Fence } else { Wgmma::Commit }));
        }
        "wait_group" => {
            p.done(1)?;
            return Ok(Op::Wgmma(Wgmma::Wait(immediate(p, &ops[0])?)));
        }
        "mma_async" => {}
        _ => return p.unknown(),
    }
    let (shape, sum) = (p.part()?, p.part()?);
    let (a, b) = (p.part()?, p.part()?);
    let columns = shape.strip_prefix("m64n").and_then(|rest| rest.split_once('k'));
    let columns = columns.and_then(|(n, k)| Some((n.parse::<usize>().ok()?, k)));
    let element = match (a, columns) {
        ("f16", Some((_, "16"))) => MatrixType::F16,
        ("bf16", Some((_, "16"))) => MatrixType::Bf16,
        ("tf32", Some((_, "8"))) => MatrixType::Tf32,
        _ => return p.unknown(),
    };
    let columns = columns.map_or(0, |(n, _)| n);
    if sum != "f32" || a != b || !columns.is_multiple_of(8) || !(8..=256).contains(&columns) {
        return p.unknown();
    }
    let in_registers = matches!(ops.get(1), Some(Operand::Vector(_)));
    // After scale-d and the two scale immediates, 16-bit types have a transpose immediate per operand in shared memory.
    let transposes = if element == MatrixType::Tf32 { 0 } else { 2 - usize::from(in_registers) };
    p.done(6 + transposes)?;
    let Operand::Vector(accumulators) = &ops[0] else { return p.unknown() };
    if accumulators.len() != columns / 2 {
        return error(
            p.line,
            format!(
                "expected {} accumulators per thread for {columns} columns, found {}",
                columns / 2,
                accumulators.len()
            ),
        );
    }
    let accumulators = accumulators.iter().map(|o| d.target(o, RegisterFile::Bits32)).collect::<Result<Vec<Reg>>>()?;
    let flag = |at: usize| -> Result<bool> {
        match ops.get(at) {
            Some(Operand::Integer(n @ 0..=1)) => Ok(*n == 1),
            Some(_) => p.unknown(),
            None => Ok(false),
        }
    };
    let sign = |at: usize| match ops[at] {
        Operand::Integer(1) => Ok(false),
        Operand::Integer(n) if n == 1u64.wrapping_neg() => Ok(true),
        _ => p.unknown(),
    };
    let negated = [sign(4)?, sign(5)?];
    let a = match &ops[1] {
        Operand::Vector(parts) if parts.len() == 4 => {
            let regs = parts.iter().map(|o| d.r32(o)).collect::<Result<Vec<Reg>>>()?;
            OperandA::Registers([regs[0], regs[1], regs[2], regs[3]])
        }
        Operand::Vector(_) => return error(p.line, "expected a fragment of 4 registers"),
        one => OperandA::Shared { descriptor: d.source(one, RegisterFile::Bits64)?, transposed: flag(6)? },
    };
    let transposed = flag(if in_registers { 6 } else { 7 })?;
    let accumulate = d.source(&ops[3], RegisterFile::Predicate)?;
    let b = d.source(&ops[2], RegisterFile::Bits64)?;
    Ok(Op::Wgmma(Wgmma::MmaAsync(MmaAsync { element, d: accumulators, a, b, transposed, accumulate, negated })))
}

/// `fence` and `membar`
pub(super) fn fence(p: &mut OpcodeReader<'_>) -> Result<Op> {
    if p.take("proxy") {
        if !p.take("async") {
            return p.unknown();
        }
        _ = p.part();
        return Ok(Op::ProxyFence { data: true });
    }
    if p.take("mbarrier_init") {
        if !p.take("release") || !p.take("cluster") {
            return p.unknown();
        }
        p.done(0)?;
        return Ok(Op::ProxyFence { data: false });
    }
    _ = p.part()?;
    _ = p.part();
    Ok(Op::Fence)
}

/// `setmaxnreg.inc` and `.dec`
pub(super) fn registers(p: &mut OpcodeReader<'_>) -> Result<Op> {
    if !(p.take("inc") || p.take("dec")) || !p.take("sync") || !p.take("aligned") || !p.take("u32") {
        return p.unknown();
    }
    p.done(1)?;
    let count = immediate(p, &p.operands[0])?;
    if !count.is_multiple_of(8) || !(24..=256).contains(&count) {
        return error(p.line, format!("setmaxnreg: {count} is not a multiple of 8 from 24 to 256"));
    }
    Ok(Op::Registers)
}

/// `elect.sync d|p, members`
pub(super) fn elect(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    if !p.take("sync") {
        return p.unknown();
    }
    p.done(2)?;
    let Operand::Pair(lane, is) = &ops[0] else { return p.unknown() };
    let lane = d.sink(&Operand::Name(lane.clone()), RegisterFile::Bits32)?;
    Ok(Op::Elect { lane, is: d.named(is, RegisterFile::Predicate)?, members: d.r32(&ops[1])? })
}
