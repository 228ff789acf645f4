//! What each opcode means. Whatever is not listed here, a type or modifier included, is an error that names it.

use super::decode::{Decoder, File, size_of};
use super::program::{Binary, Cell, Op, Reg, Rounding, Space, Ternary, Unary};
use super::syntax::{Instruction, Operand, Result, error};
use super::{opcodes_async, opcodes_memory, opcodes_warp};

/// An instruction while it is taken apart.
pub(super) struct Parts<'a> {
    opcode: &'a [String],
    next: usize,
    pub operands: &'a [Operand],
    pub line: u32,
}

impl<'a> Parts<'a> {
    /// Takes the next modifier if it is this one.
    pub fn take(&mut self, word: &str) -> bool {
        let is = self.opcode.get(self.next).is_some_and(|part| part == word);
        self.next += usize::from(is);
        is
    }

    /// Whether the opcode has a modifier anywhere.
    pub fn opcode_has(&self, word: &str) -> bool {
        self.opcode.iter().any(|part| part == word)
    }

    /// The next modifier.
    pub fn part(&mut self) -> Result<&'a str> {
        self.next += 1;
        match self.opcode.get(self.next - 1) {
            Some(part) => Ok(part),
            None => self.unknown(),
        }
    }

    /// The next modifier as a type that has a register: name and file.
    pub fn kind(&mut self) -> Result<(&'a str, File)> {
        let kind = self.part()?;
        match size_of(kind) {
            Some((_, file)) => Ok((kind, file)),
            None => self.unknown(),
        }
    }

    pub fn unknown<T>(&self) -> Result<T> {
        error(self.line, format!("unknown instruction {}", self.opcode.join(".")))
    }

    /// All modifiers have been understood, and there are as many operands as the instruction has.
    pub fn done(&self, operands: usize) -> Result<()> {
        if self.next < self.opcode.len() {
            return self.unknown();
        }
        if self.operands.len() != operands {
            let found = self.operands.len();
            return error(self.line, format!("{} has {operands} operands, not {found}", self.opcode.join(".")));
        }
        Ok(())
    }
}

/// The operation of an instruction.
pub(super) fn decode(d: &mut Decoder, instruction: &Instruction) -> Result<Op> {
    let mut p = Parts { opcode: &instruction.opcode, next: 1, operands: &instruction.operands, line: d.line };
    let ops = p.operands;
    match instruction.opcode[0].as_str() {
        "add" | "sub" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr" | "div" | "rem" => {
            binary(d, &mut p, &instruction.opcode[0])
        }
        "mul" | "mad" | "fma" => multiply(d, &mut p, &instruction.opcode[0]),
        "mov" => mov(d, &mut p),
        "cvt" => convert(d, &mut p),
        "not" | "neg" | "abs" | "popc" | "clz" | "brev" | "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos"
        | "tanh" => unary(d, &mut p, &instruction.opcode[0]),
        "lop3" => {
            p.take("b32");
            p.done(5)?;
            let Operand::Integer(table) = ops[4] else { return p.unknown() };
            ternary(d, Ternary::Logic(table as u8), ops)
        }
        "bfe" | "prmt" => {
            let with = if p.take("u32") {
                Ternary::Field
            } else if p.take("b32") {
                Ternary::Permute
            } else {
                return p.unknown();
            };
            p.done(4)?;
            ternary(d, with, ops)
        }
        "cvta" => {
            // Addresses of the emulated spaces are the same with and without a space's name.
            _ = p.take("to");
            let space = p.part()?;
            _ = p.take("u64");
            p.done(2)?;
            if space != "global" && space != "shared" && space != "param" {
                return p.unknown();
            }
            Ok(Op::Unary64(Unary::Move, d.target(&ops[0], File::Wide)?, d.source(&ops[1], File::Wide)?))
        }
        "selp" => {
            let (_, file) = p.kind()?;
            p.done(4)?;
            let predicate = d.source(&ops[3], File::Predicate)?;
            let (a, b) = (d.source(&ops[1], file)?, d.source(&ops[2], file)?);
            Ok(Op::Select { d: d.target(&ops[0], file)?, a, b, predicate, wide: file == File::Wide })
        }
        "ld" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "mma" => {
            opcodes_memory::decode(d, &mut p, &instruction.opcode[0])
        }
        "mbarrier" => opcodes_async::mbarrier(d, &mut p),
        "wgmma" => opcodes_async::product(d, &mut p),
        "membar" | "fence" => opcodes_async::fence(&mut p),
        "setmaxnreg" => opcodes_async::registers(&mut p),
        "elect" => opcodes_async::elect(d, &mut p),
        _ => opcodes_warp::decode(d, &mut p, &instruction.opcode[0]),
    }
}

pub(super) fn ternary(d: &mut Decoder, with: Ternary, ops: &[Operand]) -> Result<Op> {
    let target = d.target(&ops[0], File::Small)?;
    Ok(Op::Ternary(with, target, d.small(&ops[1])?, d.small(&ops[2])?, d.small(&ops[3])?))
}

fn binary(d: &mut Decoder, p: &mut Parts<'_>, name: &str) -> Result<Op> {
    let ops = p.operands;
    let rounded = p.take("rn");
    let approximate = p.take("approx") || p.take("full");
    _ = p.take("ftz");
    let (kind, file) = p.kind()?;
    p.done(3)?;
    if file == File::Predicate {
        return opcodes_warp::predicate_logic(d, p, name);
    }
    let single = kind == "f32";
    let signed = kind.starts_with('s');
    let with = match name {
        "add" if single => Binary::AddSingle,
        "sub" if single => Binary::SubSingle,
        // Without a rounding the assembler may choose a faster quotient; the kernels say which one they want.
        "div" if single && (rounded || approximate) => Binary::DivSingle,
        "min" if single => Binary::MinSingle,
        "max" if single => Binary::MaxSingle,
        _ if single || rounded || approximate || !matches!(&kind[1..], "32" | "64") => return p.unknown(),
        "add" => Binary::Add,
        "sub" => Binary::Sub,
        "min" if signed => Binary::MinSigned,
        "min" => Binary::MinUnsigned,
        "max" if signed => Binary::MaxSigned,
        "max" => Binary::MaxUnsigned,
        "and" => Binary::And,
        "or" => Binary::Or,
        "xor" => Binary::Xor,
        "shl" => Binary::ShiftLeft,
        "shr" if signed => Binary::ShiftRightSigned,
        "shr" => Binary::ShiftRightUnsigned,
        "div" if signed => Binary::DivSigned,
        "div" => Binary::DivUnsigned,
        "rem" if signed => Binary::RemSigned,
        "rem" => Binary::RemUnsigned,
        _ => return p.unknown(),
    };
    let shift = name.starts_with("sh");
    let target = d.target(&ops[0], file)?;
    let a = d.source(&ops[1], file)?;
    let b = if shift { d.small(&ops[2])? } else { d.source(&ops[2], file)? };
    Ok(if file == File::Wide { Op::Binary64(with, target, a, b) } else { Op::Binary(with, target, a, b) })
}

fn multiply(d: &mut Decoder, p: &mut Parts<'_>, name: &str) -> Result<Op> {
    let ops = p.operands;
    let three = name != "mul";
    let rounded = p.take("rn");
    let (low, high, wide) = (p.take("lo"), p.take("hi"), p.take("wide"));
    _ = p.take("ftz");
    let (kind, file) = p.kind()?;
    p.done(if three { 4 } else { 3 })?;
    let signed = kind == "s32";
    match (kind, name) {
        ("f32", "mul") if !low && !high && !wide => {
            let (a, b) = (d.small(&ops[1])?, d.small(&ops[2])?);
            Ok(Op::Binary(Binary::MulSingle, d.target(&ops[0], File::Small)?, a, b))
        }
        ("f32", "fma") if rounded => ternary(d, Ternary::FusedSingle, ops),
        ("u32" | "s32", _) if wide => {
            let add = if three { Some(d.source(&ops[3], File::Wide)?) } else { None };
            let (a, b) = (d.small(&ops[1])?, d.small(&ops[2])?);
            Ok(Op::MulWide { signed, d: d.target(&ops[0], File::Wide)?, a, b, add })
        }
        ("u32" | "s32", "mul") if low || high => {
            let with = match (low, signed) {
                (true, _) => Binary::MulLow,
                (_, true) => Binary::MulHighSigned,
                _ => Binary::MulHighUnsigned,
            };
            let (a, b) = (d.small(&ops[1])?, d.small(&ops[2])?);
            Ok(Op::Binary(with, d.target(&ops[0], File::Small)?, a, b))
        }
        ("u32" | "s32", "mad") if low => ternary(d, Ternary::MulAdd, ops),
        ("u64" | "s64", _) if low && name != "fma" => {
            let (a, b) = (d.source(&ops[1], file)?, d.source(&ops[2], file)?);
            let target = d.target(&ops[0], file)?;
            if three {
                return Ok(Op::MulAdd64(target, a, b, d.source(&ops[3], file)?));
            }
            Ok(Op::Binary64(Binary::MulLow, target, a, b))
        }
        _ => p.unknown(),
    }
}

fn mov(d: &mut Decoder, p: &mut Parts<'_>) -> Result<Op> {
    let ops = p.operands;
    let (kind, file) = p.kind()?;
    p.done(2)?;
    let half = |d: &Decoder, parts: &[Operand], file| -> Result<[Option<Reg>; 2]> {
        if parts.len() != 2 {
            return error(d.line, "a register is joined of two or split in two");
        }
        Ok([d.sink(&parts[0], file)?, d.sink(&parts[1], file)?])
    };
    match (&ops[0], &ops[1]) {
        (Operand::Vector(parts), from) => {
            let parts = half(d, parts, File::Small)?;
            let from = d.source(from, file)?;
            Ok(if file == File::Wide { Op::Split64(parts, from) } else { Op::Split32(parts, from) })
        }
        (to, Operand::Vector(parts)) if parts.len() == 2 => {
            let parts = [d.small(&parts[0])?, d.small(&parts[1])?];
            let to = d.target(to, file)?;
            Ok(if file == File::Wide { Op::Join64(to, parts) } else { Op::Join32(to, parts) })
        }
        (to, from) => {
            let (to, from) = (d.target(to, file)?, d.source(from, file)?);
            Ok(match file {
                File::Predicate => Op::PredicateMove(to, from),
                File::Wide => Op::Unary64(Unary::Move, to, from),
                File::Small if kind.ends_with('8') => return p.unknown(),
                File::Small => Op::Unary(Unary::Move, to, from),
            })
        }
    }
}

fn unary(d: &mut Decoder, p: &mut Parts<'_>, name: &str) -> Result<Op> {
    let ops = p.operands;
    let approximate = p.take("approx");
    let rounded = p.take("rn");
    _ = p.take("ftz");
    let (kind, file) = p.kind()?;
    p.done(2)?;
    let how = match (name, kind) {
        ("not", "pred") => {
            let from = d.source(&ops[1], File::Predicate)?;
            return Ok(Op::PredicateNot(d.target(&ops[0], File::Predicate)?, from));
        }
        ("not", "b32" | "b64") => Unary::Not,
        ("neg", "s32" | "s64") => Unary::Negate,
        ("neg", "f32") => Unary::NegateSingle,
        ("abs", "s32") => Unary::AbsSigned,
        ("abs", "f32") => Unary::AbsSingle,
        ("popc", "b32") => Unary::PopulationCount,
        ("clz", "b32") => Unary::LeadingZeros,
        ("brev", "b32") => Unary::ReverseBits,
        ("ex2", "f32") if approximate => Unary::Exp2,
        ("lg2", "f32") if approximate => Unary::Log2,
        ("rcp", "f32") if approximate || rounded => Unary::Reciprocal,
        ("rsqrt", "f32") if approximate => Unary::ReciprocalRoot,
        ("sqrt", "f32") if approximate || rounded => Unary::Root,
        ("sin", "f32") if approximate => Unary::Sine,
        ("cos", "f32") if approximate => Unary::Cosine,
        ("tanh", "f32") if approximate => Unary::HyperbolicTangent,
        _ => return p.unknown(),
    };
    let (to, from) = (d.target(&ops[0], file)?, d.source(&ops[1], file)?);
    Ok(if file == File::Wide { Op::Unary64(how, to, from) } else { Op::Unary(how, to, from) })
}

fn convert(d: &mut Decoder, p: &mut Parts<'_>) -> Result<Op> {
    let ops = p.operands;
    let rounding = match p.part()? {
        "rni" => Some(Rounding::Nearest),
        "rzi" => Some(Rounding::Zero),
        "rmi" => Some(Rounding::Down),
        "rpi" => Some(Rounding::Up),
        _ => {
            p.next -= 1;
            None
        }
    };
    let nearest = p.take("rn");
    let away = p.take("rna");
    _ = p.take("ftz");
    let saturates = p.take("sat");
    let to = p.part()?;
    if to == "tf32" && away {
        if !p.take("f32") {
            return p.unknown();
        }
        p.done(2)?;
        return Ok(Op::Unary(Unary::Tensor, d.target(&ops[0], File::Small)?, d.small(&ops[1])?));
    }
    let (from, from_file) = p.kind()?;
    if let ("f16x2" | "bf16x2", "f32", true) = (to, from, nearest) {
        p.done(3)?;
        let with = if to == "f16x2" { Ternary::HalfPair } else { Ternary::BrainPair };
        let (a, b) = (d.small(&ops[1])?, d.small(&ops[2])?);
        return Ok(Op::Ternary(with, d.target(&ops[0], File::Small)?, a, b, b));
    }
    p.done(2)?;
    let Some((_, to_file)) = size_of(to) else { return p.unknown() };
    let (target, source) = (d.target(&ops[0], to_file)?, d.source(&ops[1], from_file)?);
    let integral = |kind: &str| matches!(kind.as_bytes()[0], b'u' | b's');
    let how = match (to, from) {
        ("u32", "f32") if rounding.is_some() => Unary::UnsignedOfSingle(rounding.unwrap_or(Rounding::Zero)),
        ("s32", "f32") if rounding.is_some() => Unary::SignedOfSingle(rounding.unwrap_or(Rounding::Zero)),
        ("f32", "f32") if rounding.is_some() => Unary::IntegralSingle(rounding.unwrap_or(Rounding::Zero)),
        ("f32", "f32") if saturates => Unary::Saturate,
        ("f32", "u32") if nearest => Unary::SingleOfUnsigned,
        ("f32", "s32") if nearest => Unary::SingleOfSigned,
        ("f32", "f16") => Unary::SingleOfHalf,
        ("f32", "bf16") => Unary::SingleOfBrain,
        ("f16", "f32") if nearest => Unary::HalfOfSingle,
        ("bf16", "f32") if nearest => Unary::BrainOfSingle,
        _ if saturates || nearest || rounding.is_some() || !integral(to) || !integral(from) => return p.unknown(),
        ("u64" | "s64", "u64" | "s64") => return Ok(Op::Unary64(Unary::Move, target, source)),
        ("u64" | "s64", "u32" | "s32") => return Ok(Op::Widen { signed: from == "s32", d: target, a: source }),
        ("u32" | "s32", "u64" | "s64") => return Ok(Op::Narrow { d: target, a: source }),
        ("u32" | "s32", "u16") | ("u16", "u32" | "s32" | "u16" | "s16") => Unary::Low16,
        ("u32" | "s32", "s16") | ("s16", "u32" | "s32" | "s16" | "u16") => Unary::Sign16,
        ("u32" | "s32" | "u16" | "s16", "u8") | ("u8", "u32" | "s32" | "u16" | "s16") => Unary::Low8,
        ("u32" | "s32" | "u16" | "s16", "s8") | ("s8", "u32" | "s32" | "u16" | "s16") => Unary::Sign8,
        ("u32" | "s32", "u32" | "s32") => Unary::Move,
        _ => return p.unknown(),
    };
    Ok(Op::Unary(how, target, source))
}

/// `.global` or `.shared`.
pub(super) fn space(p: &mut Parts<'_>) -> Result<Space> {
    match p.part()? {
        "global" => Ok(Space::Global),
        "shared" | "shared::cta" => Ok(Space::Shared),
        _ => p.unknown(),
    }
}

/// Size of a number in memory.
pub(super) fn cell(p: &mut Parts<'_>) -> Result<(Cell, File)> {
    let (kind, file) = p.kind()?;
    match size_of(kind) {
        Some((bytes, File::Small | File::Wide)) => {
            Ok((Cell { bytes: bytes as u8, signed: kind.starts_with('s') }, file))
        }
        _ => p.unknown(),
    }
}
