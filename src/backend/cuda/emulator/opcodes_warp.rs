//! Opcodes of control flow, predicates, barriers and warp-collective instructions.

use super::decode::{Decoder, RegisterFile};
use super::opcodes::OpcodeReader;
use super::program::{Binary, ClusterBarrier, Compare, CompareType, Logic, Op, Order, Reg, Shuffle, Vote};
use super::syntax::{Operand, Result, error};

pub(super) fn decode(d: &mut Decoder, p: &mut OpcodeReader<'_>, name: &str) -> Result<Op> {
    let ops = p.operands;
    match name {
        "setp" => compare(d, p),
        "bra" => {
            _ = p.take("uni");
            p.done(1)?;
            Ok(Op::Branch(d.label(&ops[0])?))
        }
        "ret" | "exit" => {
            p.done(0)?;
            Ok(Op::Exit)
        }
        "bar" | "barrier" => barrier(d, p, name == "bar"),
        "shfl" => shuffle(d, p),
        "vote" => {
            let vote = match (p.take("sync"), p.part()?) {
                (true, "all") => Vote::All,
                (true, "any") => Vote::Any,
                (true, "uni") => Vote::Uniform,
                (true, "ballot") => Vote::Ballot,
                _ => return p.unknown(),
            };
            let to = if vote == Vote::Ballot && p.take("b32") {
                RegisterFile::Bits32
            } else if vote != Vote::Ballot && p.take("pred") {
                RegisterFile::Predicate
            } else {
                return p.unknown();
            };
            p.done(3)?;
            let (a, negated) = match &ops[1] {
                Operand::Not(name) => (d.named(name, RegisterFile::Predicate)?, true),
                other => (d.source(other, RegisterFile::Predicate)?, false),
            };
            Ok(Op::Vote { vote, d: d.target(&ops[0], to)?, a, negated, members: d.r32(&ops[2])? })
        }
        "redux" => {
            let name = if p.take("sync") { p.part()? } else { return p.unknown() };
            let (kind, _) = p.kind()?;
            let with = match (name, kind) {
                ("add", "u32" | "s32") => Binary::Add,
                ("min", "u32") => Binary::MinUnsigned,
                ("min", "s32") => Binary::MinSigned,
                ("max", "u32") => Binary::MaxUnsigned,
                ("max", "s32") => Binary::MaxSigned,
                ("and", "b32") => Binary::And,
                ("or", "b32") => Binary::Or,
                ("xor", "b32") => Binary::Xor,
                _ => return p.unknown(),
            };
            p.done(3)?;
            let (a, members) = (d.r32(&ops[1])?, d.r32(&ops[2])?);
            Ok(Op::Reduce { with, d: d.target(&ops[0], RegisterFile::Bits32)?, a, members })
        }
        "activemask" => {
            if !p.take("b32") {
                return p.unknown();
            }
            p.done(1)?;
            Ok(Op::ActiveMask(d.target(&ops[0], RegisterFile::Bits32)?))
        }
        _ => p.unknown(),
    }
}

/// `and.pred`, `or.pred`, `xor.pred`
pub(super) fn predicate_logic(d: &mut Decoder, p: &OpcodeReader<'_>, name: &str) -> Result<Op> {
    let Some(logic) = logic(name) else { return p.unknown() };
    let (a, b) =
        (d.source(&p.operands[1], RegisterFile::Predicate)?, d.source(&p.operands[2], RegisterFile::Predicate)?);
    Ok(Op::PredicateLogic(logic, d.target(&p.operands[0], RegisterFile::Predicate)?, a, b))
}

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}

fn compare(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    let compare = match p.part()? {
        "eq" => Compare::Equal,
        "ne" => Compare::NotEqual,
        "lt" | "lo" => Compare::Less,
        "le" | "ls" => Compare::LessOrEqual,
        "gt" | "hi" => Compare::Greater,
        "ge" | "hs" => Compare::GreaterOrEqual,
        "equ" => Compare::Unordered(Order::Equal),
        "neu" => Compare::Unordered(Order::NotEqual),
        "ltu" => Compare::Unordered(Order::Less),
        "leu" => Compare::Unordered(Order::LessOrEqual),
        "gtu" => Compare::Unordered(Order::Greater),
        "geu" => Compare::Unordered(Order::GreaterOrEqual),
        "num" => Compare::IsNumber,
        "nan" => Compare::IsNan,
        _ => return p.unknown(),
    };
    let with = ["and", "or", "xor"].iter().find(|name| p.take(name)).and_then(|name| logic(name));
    _ = p.take("ftz");
    let (kind, file) = p.kind()?;
    p.done(if with.is_some() { 4 } else { 3 })?;
    let compare_type = match kind {
        "u32" | "b32" | "u64" | "b64" => CompareType::Unsigned,
        "s32" | "s64" => CompareType::Signed,
        "f32" => CompareType::F32,
        _ => return p.unknown(),
    };
    let real = matches!(compare, Compare::Unordered(_) | Compare::IsNumber | Compare::IsNan);
    if real && compare_type != CompareType::F32 {
        return p.unknown();
    }
    let (a, b) = (d.source(&ops[1], file)?, d.source(&ops[2], file)?);
    let with = match (with, ops.get(3)) {
        (Some(logic), Some(Operand::Not(name))) => Some((logic, d.named(name, RegisterFile::Predicate)?, true)),
        (Some(logic), Some(other)) => Some((logic, d.source(other, RegisterFile::Predicate)?, false)),
        _ => None,
    };
    let (to, not) = pair(d, &ops[0], RegisterFile::Predicate)?;
    Ok(Op::SetPredicate { compare, compare_type, wide: file == RegisterFile::Bits64, d: to, not, a, b, with })
}

/// `d` or `d|p` with a predicate `p`.
fn pair(d: &Decoder, operand: &Operand, file: RegisterFile) -> Result<(Reg, Option<Reg>)> {
    match operand {
        Operand::Pair(first, second) => {
            let first = d.target(&Operand::Name(first.clone()), file)?;
            Ok((first, Some(d.named(second, RegisterFile::Predicate)?)))
        }
        one => Ok((d.target(one, file)?, None)),
    }
}

fn barrier(d: &mut Decoder, p: &mut OpcodeReader<'_>, aligned: bool) -> Result<Op> {
    let ops = p.operands;
    if aligned && p.take("warp") {
        if !p.take("sync") {
            return p.unknown();
        }
        p.done(1)?;
        return Ok(Op::WarpBarrier(d.r32(&ops[0])?));
    }
    if !aligned && p.take("cluster") {
        let which = match p.part()? {
            "arrive" if p.take("release") => ClusterBarrier::Arrive { releases: true },
            "arrive" if p.take("relaxed") => ClusterBarrier::Arrive { releases: false },
            "wait" if p.take("acquire") => ClusterBarrier::Wait,
            _ => return p.unknown(),
        };
        if !p.take("aligned") {
            return p.unknown();
        }
        p.done(0)?;
        return Ok(Op::ClusterBarrier(which));
    }
    _ = p.take("cta");
    let waits = match p.part()? {
        "sync" => true,
        "arrive" => false,
        _ => return p.unknown(),
    };
    let aligned = p.take("aligned") || aligned;
    p.done(ops.len().clamp(1, 2))?;
    let threads = if ops.len() == 2 { Some(d.r32(&ops[1])?) } else { None };
    if !waits && threads.is_none() {
        return error(p.line, "barrier.arrive needs the number of threads");
    }
    Ok(Op::Barrier { id: d.r32(&ops[0])?, threads, waits, aligned })
}

fn shuffle(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    let shuffle = match (p.take("sync"), p.part()?) {
        (true, "idx") => Shuffle::Index,
        (true, "up") => Shuffle::Up,
        (true, "down") => Shuffle::Down,
        (true, "bfly") => Shuffle::Butterfly,
        _ => return p.unknown(),
    };
    if !p.take("b32") {
        return p.unknown();
    }
    p.done(5)?;
    let (to, found) = pair(d, &ops[0], RegisterFile::Bits32)?;
    let (a, b, c) = (d.r32(&ops[1])?, d.r32(&ops[2])?, d.r32(&ops[3])?);
    Ok(Op::Shuffle { shuffle, d: to, found, a, b, c, members: d.r32(&ops[4])? })
}
