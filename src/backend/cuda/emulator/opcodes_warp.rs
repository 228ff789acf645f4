//! Opcodes of control flow, predicates, and of what the threads of a warp or block do together.

use super::decode::{Decoder, File};
use super::opcodes::Parts;
use super::program::{Binary, Compare, Logic, Number, Op, Order, Reg, Shuffle, Vote};
use super::syntax::{Operand, Result, error};

pub(super) fn decode(d: &mut Decoder, p: &mut Parts<'_>, name: &str) -> Result<Op> {
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
                File::Small
            } else if vote != Vote::Ballot && p.take("pred") {
                File::Predicate
            } else {
                return p.unknown();
            };
            p.done(3)?;
            let (a, negated) = match &ops[1] {
                Operand::Not(name) => (d.named(name, File::Predicate)?, true),
                other => (d.source(other, File::Predicate)?, false),
            };
            Ok(Op::Vote { vote, d: d.target(&ops[0], to)?, a, negated, members: d.small(&ops[2])? })
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
            let (a, members) = (d.small(&ops[1])?, d.small(&ops[2])?);
            Ok(Op::Reduce { with, d: d.target(&ops[0], File::Small)?, a, members })
        }
        "activemask" => {
            if !p.take("b32") {
                return p.unknown();
            }
            p.done(1)?;
            Ok(Op::ActiveMask(d.target(&ops[0], File::Small)?))
        }
        _ => p.unknown(),
    }
}

/// `and.pred`, `or.pred`, `xor.pred`
pub(super) fn predicate_logic(d: &mut Decoder, p: &Parts<'_>, name: &str) -> Result<Op> {
    let Some(logic) = logic(name) else { return p.unknown() };
    let (a, b) = (d.source(&p.operands[1], File::Predicate)?, d.source(&p.operands[2], File::Predicate)?);
    Ok(Op::PredicateLogic(logic, d.target(&p.operands[0], File::Predicate)?, a, b))
}

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}

fn compare(d: &mut Decoder, p: &mut Parts<'_>) -> Result<Op> {
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
    let number = match kind {
        "u32" | "b32" | "u64" | "b64" => Number::Unsigned,
        "s32" | "s64" => Number::Signed,
        "f32" => Number::Single,
        _ => return p.unknown(),
    };
    let real = matches!(compare, Compare::Unordered(_) | Compare::IsNumber | Compare::IsNan);
    if real && number != Number::Single {
        return p.unknown();
    }
    let (a, b) = (d.source(&ops[1], file)?, d.source(&ops[2], file)?);
    let with = match (with, ops.get(3)) {
        (Some(logic), Some(Operand::Not(name))) => Some((logic, d.named(name, File::Predicate)?, true)),
        (Some(logic), Some(other)) => Some((logic, d.source(other, File::Predicate)?, false)),
        _ => None,
    };
    let (to, not) = pair(d, &ops[0], File::Predicate)?;
    Ok(Op::SetPredicate { compare, number, wide: file == File::Wide, d: to, not, a, b, with })
}

/// `d` or `d|p`, of which `p` is a predicate.
fn pair(d: &Decoder, operand: &Operand, file: File) -> Result<(Reg, Option<Reg>)> {
    match operand {
        Operand::Pair(first, second) => {
            let first = d.target(&Operand::Name(first.clone()), file)?;
            Ok((first, Some(d.named(second, File::Predicate)?)))
        }
        one => Ok((d.target(one, file)?, None)),
    }
}

fn barrier(d: &mut Decoder, p: &mut Parts<'_>, aligned: bool) -> Result<Op> {
    let ops = p.operands;
    if aligned && p.take("warp") {
        if !p.take("sync") {
            return p.unknown();
        }
        p.done(1)?;
        return Ok(Op::WarpBarrier(d.small(&ops[0])?));
    }
    _ = p.take("cta");
    let waits = match p.part()? {
        "sync" => true,
        "arrive" => false,
        _ => return p.unknown(),
    };
    let aligned = p.take("aligned") || aligned;
    p.done(ops.len().clamp(1, 2))?;
    let threads = if ops.len() == 2 { Some(d.small(&ops[1])?) } else { None };
    if !waits && threads.is_none() {
        return error(p.line, "who only arrives at a barrier says how many threads it is for");
    }
    Ok(Op::Barrier { id: d.small(&ops[0])?, threads, waits, aligned })
}

fn shuffle(d: &mut Decoder, p: &mut Parts<'_>) -> Result<Op> {
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
    let (to, found) = pair(d, &ops[0], File::Small)?;
    let (a, b, c) = (d.small(&ops[1])?, d.small(&ops[2])?, d.small(&ops[3])?);
    Ok(Op::Shuffle { shuffle, d: to, found, a, b, c, members: d.small(&ops[4])? })
}
