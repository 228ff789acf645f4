//! Decoding of opcodes. An opcode, type or modifier that is not listed is an error that names it.

use super::decode::{Decoder, RegisterFile, size_of};
use super::program::{Binary, ElementType, Op, Reg, Rounding, Space, Ternary, Unary};
use super::syntax::{Instruction, Operand, Result, error};
use super::{opcodes_async, opcodes_memory, opcodes_warp};

/// Reads an opcode's modifiers from left to right.
pub(super) struct OpcodeReader<'a> {
    opcode: &'a [String],
    next: usize,
    pub operands: &'a [Operand],
    pub line: u32,
}

impl<'a> OpcodeReader<'a> {
    /// Consumes the next modifier if it equals `word`.
    pub fn take(&mut self, word: &str) -> bool {
        let is = self.opcode.get(self.next).is_some_and(|part| part == word);
        self.next += usize::from(is);
        is
    }

    /// Whether the opcode contains a modifier at any position.
    pub fn opcode_has(&self, word: &str) -> bool {
        self.opcode.iter().any(|part| part == word)
    }

    /// Consumes the next modifier.
    pub fn part(&mut self) -> Result<&'a str> {
        self.next += 1;
        match self.opcode.get(self.next - 1) {
            Some(part) => Ok(part),
            None => self.unknown(),
        }
    }

    /// Consumes the next modifier as a type: its name and register file.
    pub fn kind(&mut self) -> Result<(&'a str, RegisterFile)> {
        let kind = self.part()?;
        match size_of(kind) {
            Some((_, file)) => Ok((kind, file)),
            None => self.unknown(),
        }
    }

    pub fn unknown<T>(&self) -> Result<T> {
        error(self.line, format!("unknown instruction {}", self.opcode.join(".")))
    }

    /// Checks that all modifiers were consumed and that the number of operands is right.
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
    let mut p = OpcodeReader { opcode: &instruction.opcode, next: 1, operands: &instruction.operands, line: d.line };
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
            ternary(d, Ternary::Lop3(table as u8), ops)
        }
        "bfe" | "prmt" => {
            let with = if p.take("u32") {
                Ternary::BitField
            } else if p.take("b32") {
                Ternary::Permute
            } else {
                return p.unknown();
            };
            p.done(4)?;
            ternary(d, with, ops)
        }
        "cvta" => {
            // Emulated generic addresses equal the addresses in each state space.
            _ = p.take("to");
            let space = p.part()?;
            _ = p.take("u64");
            p.done(2)?;
            if space != "global" && space != "shared" && space != "param" {
                return p.unknown();
            }
            Ok(Op::Unary64(
                Unary::Move,
                d.target(&ops[0], RegisterFile::Bits64)?,
                d.source(&ops[1], RegisterFile::Bits64)?,
            ))
        }
        "selp" => {
            let (_, file) = p.kind()?;
            p.done(4)?;
            let predicate = d.source(&ops[3], RegisterFile::Predicate)?;
            let (a, b) = (d.source(&ops[1], file)?, d.source(&ops[2], file)?);
            Ok(Op::Select { d: d.target(&ops[0], file)?, a, b, predicate, wide: file == RegisterFile::Bits64 })
        }
        "ld" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "mma" | "mapa" => {
            opcodes_memory::decode(d, &mut p, &instruction.opcode[0])
        }
        "mbarrier" => opcodes_async::mbarrier(d, &mut p),
        "wgmma" => opcodes_async::wgmma(d, &mut p),
        "membar" | "fence" => opcodes_async::fence(&mut p),
        "setmaxnreg" => opcodes_async::registers(&mut p),
        "elect" => opcodes_async::elect(d, &mut p),
        _ => opcodes_warp::decode(d, &mut p, &instruction.opcode[0]),
    }
}

pub(super) fn ternary(d: &mut Decoder, with: Ternary, ops: &[Operand]) -> Result<Op> {
    let target = d.target(&ops[0], RegisterFile::Bits32)?;
    Ok(Op::Ternary(with, target, d.r32(&ops[1])?, d.r32(&ops[2])?, d.r32(&ops[3])?))
}

fn binary(d: &mut Decoder, p: &mut OpcodeReader<'_>, name: &str) -> Result<Op> {
    let ops = p.operands;
    let rounded = p.take("rn");
    let approximate = p.take("approx") || p.take("full");
    _ = p.take("ftz");
    let (kind, file) = p.kind()?;
    p.done(3)?;
    if file == RegisterFile::Predicate {
        return opcodes_warp::predicate_logic(d, p, name);
    }
    let single = kind == "f32";
    let signed = kind.starts_with('s');
    let with = match name {
        "add" if single => Binary::AddF32,
        "sub" if single => Binary::SubF32,
        // A rounding mode is required: without one the assembler may choose a less accurate division.
        "div" if single && (rounded || approximate) => Binary::DivF32,
        "min" if single => Binary::MinF32,
        "max" if single => Binary::MaxF32,
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
    let b = if shift { d.r32(&ops[2])? } else { d.source(&ops[2], file)? };
    Ok(if file == RegisterFile::Bits64 { Op::Binary64(with, target, a, b) } else { Op::Binary(with, target, a, b) })
}

fn multiply(d: &mut Decoder, p: &mut OpcodeReader<'_>, name: &str) -> Result<Op> {
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
            let (a, b) = (d.r32(&ops[1])?, d.r32(&ops[2])?);
            Ok(Op::Binary(Binary::MulF32, d.target(&ops[0], RegisterFile::Bits32)?, a, b))
        }
        ("f32", "fma") if rounded => ternary(d, Ternary::FmaF32, ops),
        ("u32" | "s32", _) if wide => {
            let add = if three { Some(d.source(&ops[3], RegisterFile::Bits64)?) } else { None };
            let (a, b) = (d.r32(&ops[1])?, d.r32(&ops[2])?);
            Ok(Op::MulWide { signed, d: d.target(&ops[0], RegisterFile::Bits64)?, a, b, add })
        }
        ("u32" | "s32", "mul") if low || high => {
            let with = match (low, signed) {
                (true, _) => Binary::MulLow,
                (_, true) => Binary::MulHighSigned,
                _ => Binary::MulHighUnsigned,
            };
            let (a, b) = (d.r32(&ops[1])?, d.r32(&ops[2])?);
            Ok(Op::Binary(with, d.target(&ops[0], RegisterFile::Bits32)?, a, b))
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

fn mov(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
    let ops = p.operands;
    let (kind, file) = p.kind()?;
    p.done(2)?;
    let half = |d: &Decoder, parts: &[Operand], file| -> Result<[Option<Reg>; 2]> {
        if parts.len() != 2 {
            return error(d.line, "mov packs or unpacks exactly two registers");
        }
        Ok([d.sink(&parts[0], file)?, d.sink(&parts[1], file)?])
    };
    match (&ops[0], &ops[1]) {
        (Operand::Vector(parts), from) => {
            let parts = half(d, parts, RegisterFile::Bits32)?;
            let from = d.source(from, file)?;
            Ok(if file == RegisterFile::Bits64 { Op::Split64(parts, from) } else { Op::Split32(parts, from) })
        }
        (to, Operand::Vector(parts)) if parts.len() == 2 => {
            let parts = [d.r32(&parts[0])?, d.r32(&parts[1])?];
            let to = d.target(to, file)?;
            Ok(if file == RegisterFile::Bits64 { Op::Join64(to, parts) } else { Op::Join32(to, parts) })
        }
        (to, from) => {
            let (to, from) = (d.target(to, file)?, d.source(from, file)?);
            Ok(match file {
                RegisterFile::Predicate => Op::PredicateMove(to, from),
                RegisterFile::Bits64 => Op::Unary64(Unary::Move, to, from),
                RegisterFile::Bits32 if kind.ends_with('8') => return p.unknown(),
                RegisterFile::Bits32 => Op::Unary(Unary::Move, to, from),
            })
        }
    }
}

fn unary(d: &mut Decoder, p: &mut OpcodeReader<'_>, name: &str) -> Result<Op> {
    let ops = p.operands;
    let approximate = p.take("approx");
    let rounded = p.take("rn");
    _ = p.take("ftz");
    let (kind, file) = p.kind()?;
    p.done(2)?;
    let how = match (name, kind) {
        ("not", "pred") => {
            let from = d.source(&ops[1], RegisterFile::Predicate)?;
            return Ok(Op::PredicateNot(d.target(&ops[0], RegisterFile::Predicate)?, from));
        }
        ("not", "b32" | "b64") => Unary::Not,
        ("neg", "s32" | "s64") => Unary::Negate,
        ("neg", "f32") => Unary::NegateF32,
        ("abs", "s32") => Unary::AbsSigned,
        ("abs", "f32") => Unary::AbsF32,
        ("popc", "b32") => Unary::PopulationCount,
        ("clz", "b32") => Unary::LeadingZeros,
        ("brev", "b32") => Unary::ReverseBits,
        ("ex2", "f32") if approximate => Unary::Exp2,
        ("lg2", "f32") if approximate => Unary::Log2,
        ("rcp", "f32") if approximate || rounded => Unary::Reciprocal,
        ("rsqrt", "f32") if approximate => Unary::ReciprocalSqrt,
        ("sqrt", "f32") if approximate || rounded => Unary::Sqrt,
        ("sin", "f32") if approximate => Unary::Sine,
        ("cos", "f32") if approximate => Unary::Cosine,
        ("tanh", "f32") if approximate => Unary::Tanh,
        _ => return p.unknown(),
    };
    let (to, from) = (d.target(&ops[0], file)?, d.source(&ops[1], file)?);
    Ok(if file == RegisterFile::Bits64 { Op::Unary64(how, to, from) } else { Op::Unary(how, to, from) })
}

fn convert(d: &mut Decoder, p: &mut OpcodeReader<'_>) -> Result<Op> {
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
        return Ok(Op::Unary(Unary::Tf32FromF32, d.target(&ops[0], RegisterFile::Bits32)?, d.r32(&ops[1])?));
    }
    let (from, from_file) = p.kind()?;
    if let ("f16x2" | "bf16x2", "f32", true) = (to, from, nearest) {
        p.done(3)?;
        let with = if to == "f16x2" { Ternary::F16Pair } else { Ternary::Bf16Pair };
        let (a, b) = (d.r32(&ops[1])?, d.r32(&ops[2])?);
        return Ok(Op::Ternary(with, d.target(&ops[0], RegisterFile::Bits32)?, a, b, b));
    }
    p.done(2)?;
    let Some((_, to_file)) = size_of(to) else { return p.unknown() };
    let (target, source) = (d.target(&ops[0], to_file)?, d.source(&ops[1], from_file)?);
    let integral = |kind: &str| matches!(kind.as_bytes()[0], b'u' | b's');
    let how = match (to, from) {
        ("u32", "f32") if rounding.is_some() => Unary::U32FromF32(rounding.unwrap_or(Rounding::Zero)),
        ("s32", "f32") if rounding.is_some() => Unary::S32FromF32(rounding.unwrap_or(Rounding::Zero)),
        ("f32", "f32") if rounding.is_some() => Unary::RoundF32(rounding.unwrap_or(Rounding::Zero)),
        ("f32", "f32") if saturates => Unary::Saturate,
        ("f32", "u32") if nearest => Unary::F32FromU32,
        ("f32", "s32") if nearest => Unary::F32FromS32,
        ("f32", "f16") => Unary::F32FromF16,
        ("f32", "bf16") => Unary::F32FromBf16,
        ("f16", "f32") if nearest => Unary::F16FromF32,
        ("bf16", "f32") if nearest => Unary::Bf16FromF32,
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
pub(super) fn space(p: &mut OpcodeReader<'_>) -> Result<Space> {
    match p.part()? {
        "global" => Ok(Space::Global),
        "shared" | "shared::cta" => Ok(Space::Shared),
        _ => p.unknown(),
    }
}

/// Element type of a load or store, and its register file.
pub(super) fn element_type(p: &mut OpcodeReader<'_>) -> Result<(ElementType, RegisterFile)> {
    let (kind, file) = p.kind()?;
    match size_of(kind) {
        Some((bytes, RegisterFile::Bits32 | RegisterFile::Bits64)) => {
            Ok((ElementType { bytes: bytes as u8, signed: kind.starts_with('s') }, file))
        }
        _ => p.unknown(),
    }
}
