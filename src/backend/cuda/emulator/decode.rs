//! Decodes an entry: registers become indices, labels become addresses, constants become registers.

use super::opcodes;
use super::program::{Instruction, Kernel, MAP_BYTES, Op, PARAMETERS, Parameter, Preset, Reg};
use super::syntax::{Declaration, Entry, Operand, Result, Statement, error};
use std::cell::RefCell;
use std::collections::HashMap;

/// Address of shared memory. Not zero, so that a missing symbol address is caught. A kernel with a smaller alignment
/// gets an odd multiple of its alignment, because a device guarantees no more.
const SHARED_BASE: u32 = 1024;

/// Limit of shared memory per block: 99 KiB on the smallest devices that run sm_80 code (8.6, 8.9, 12.0), 227 KiB on
/// Hopper.
const MAX_SHARED: u32 = 99 << 10;
const MAX_SHARED_HOPPER: u32 = 227 << 10;

/// A register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegisterFile {
    /// Registers of up to 32 bits.
    Bits32,
    Bits64,
    Predicate,
}

/// Size in bytes and register file of a type.
pub(super) fn size_of(kind: &str) -> Option<(u32, RegisterFile)> {
    Some(match kind {
        "pred" => (1, RegisterFile::Predicate),
        "b8" | "u8" | "s8" => (1, RegisterFile::Bits32),
        "b16" | "u16" | "s16" | "f16" | "bf16" => (2, RegisterFile::Bits32),
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => (4, RegisterFile::Bits32),
        "b64" | "u64" | "s64" => (8, RegisterFile::Bits64),
        _ => return None,
    })
}

/// The symbol tables of a kernel while it is decoded.
pub(super) struct Decoder {
    pub line: u32,
    names: [Vec<String>; 3],
    known: HashMap<String, (RegisterFile, Reg)>,
    presets: HashMap<Preset, Reg>,
    constants64: HashMap<u64, Reg>,
    shared: HashMap<String, u32>,
    shared_base: u32,
    shared_bytes: u32,
    parameters: Vec<Parameter>,
    labels: HashMap<String, u32>,
    /// 32-bit registers that the current instruction writes.
    targets: RefCell<Vec<Reg>>,
}

impl std::hash::Hash for Preset {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Only constants are numerous.
        if let Preset::Constant(bits) = self {
            bits.hash(state);
        }
    }
}

/// Decodes one entry.
pub(super) fn decode(entry: &Entry) -> Result<Kernel> {
    let mut decoder = Decoder {
        line: entry.body.first().map_or(0, |(line, _)| *line),
        names: Default::default(),
        known: HashMap::new(),
        presets: HashMap::new(),
        constants64: HashMap::new(),
        shared: HashMap::new(),
        shared_base: 0,
        shared_bytes: 0,
        parameters: Vec::new(),
        labels: HashMap::new(),
        targets: RefCell::default(),
    };
    entry.parameters.iter().try_for_each(|d| decoder.parameter(d))?;
    entry.registers.iter().try_for_each(|d| decoder.registers(d))?;
    let declared = entry.shared.iter().chain(&entry.dynamic);
    let alignments = declared.map(|d| Ok(d.align.max(Decoder::size(d)?.0))).collect::<Result<Vec<u32>>>()?;
    let alignment = alignments.into_iter().max().unwrap_or(SHARED_BASE);
    decoder.shared_base = if alignment < SHARED_BASE { SHARED_BASE + alignment } else { alignment };
    entry.shared.iter().try_for_each(|d| decoder.shared_array(d))?;
    let fixed = decoder.shared_bytes;
    entry.dynamic.iter().try_for_each(|d| decoder.shared_array(d))?;
    let dynamic_shared = (!entry.dynamic.is_empty()).then_some(decoder.shared_bytes);
    let mut pc = 0;
    for (line, statement) in &entry.body {
        match statement {
            Statement::Label(name) => {
                if decoder.labels.insert(name.clone(), pc).is_some() {
                    return error(*line, format!("the label {name} is defined twice"));
                }
            }
            Statement::Instruction(_) => pc += 1,
        }
    }
    let mut code = Vec::new();
    for (line, statement) in &entry.body {
        let Statement::Instruction(instruction) = statement else { continue };
        decoder.line = *line;
        let guard = match &instruction.guard {
            Some((name, negated)) => Some((decoder.named(name, RegisterFile::Predicate)?, *negated)),
            None => None,
        };
        let op = opcodes::decode(&mut decoder, instruction)?;
        code.push(Instruction { line: *line, guard, op, targets: decoder.targets.take() });
    }
    // A body may end without `ret`.
    code.push(Instruction { line: decoder.line, guard: None, op: Op::Exit, targets: Vec::new() });
    let Some(threads) = entry.threads else {
        return error(decoder.line, format!("{} has no .reqntid", entry.name));
    };
    if threads.iter().map(|&n| u64::from(n)).product::<u64>() > 1024 || threads.contains(&0) {
        return error(decoder.line, format!("{} cannot have blocks of {threads:?} threads", entry.name));
    }
    Ok(Kernel {
        name: entry.name.clone(),
        threads,
        parameters: decoder.parameters,
        max_shared: if entry.target.starts_with("sm_90") { MAX_SHARED_HOPPER } else { MAX_SHARED },
        shared_base: decoder.shared_base,
        shared_bytes: fixed,
        dynamic_shared,
        asynchronous: code.iter().any(|i| i.op.is_asynchronous()),
        code,
        names: decoder.names,
        presets: decoder.presets.into_iter().map(|(preset, reg)| (reg, preset)).collect(),
        presets64: decoder.constants64.into_iter().map(|(bits, reg)| (reg, bits)).collect(),
    })
}

impl Decoder {
    fn size(d: &Declaration) -> Result<(u32, RegisterFile)> {
        size_of(&d.kind).map_or_else(|| error(d.line, format!("unknown type .{}", d.kind)), Ok)
    }

    fn parameter(&mut self, d: &Declaration) -> Result<()> {
        let end = self.parameters.last().map_or(0, |p| p.offset + p.bytes);
        let is_map = d.count == Some(MAP_BYTES) && d.align == 64 && d.kind == "b8";
        if d.count.is_some() && !is_map {
            return error(d.line, format!("parameter {} is an array but not a tensor map", d.name));
        }
        let bytes = if is_map { MAP_BYTES } else { Self::size(d)?.0 };
        let offset = end.next_multiple_of(if is_map { d.align } else { bytes });
        self.parameters.push(Parameter { name: d.name.clone(), offset, bytes, is_map });
        Ok(())
    }

    fn registers(&mut self, d: &Declaration) -> Result<()> {
        let (_, file) = Self::size(d)?;
        let names: Vec<String> = match d.count {
            Some(count) => (0..count).map(|i| format!("{}{i}", d.name)).collect(),
            None => vec![d.name.clone()],
        };
        for name in names {
            let reg = self.add(file, name.clone())?;
            if self.known.insert(name, (file, reg)).is_some() {
                return error(d.line, format!("the register {} is declared twice", d.name));
            }
        }
        Ok(())
    }

    fn add(&mut self, file: RegisterFile, name: String) -> Result<Reg> {
        let names = &mut self.names[file as usize];
        names.push(name);
        Reg::try_from(names.len() - 1).or_else(|_| error(self.line, "more than 65536 registers"))
    }

    fn shared_array(&mut self, d: &Declaration) -> Result<()> {
        let (bytes, _) = Self::size(d)?;
        let from = self.shared_bytes.next_multiple_of(d.align.max(bytes));
        self.shared.insert(d.name.clone(), self.shared_base + from);
        self.shared_bytes = from + bytes * d.count.unwrap_or(1);
        Ok(())
    }

    fn preset(&mut self, preset: Preset, name: String) -> Result<Reg> {
        if let Some(&reg) = self.presets.get(&preset) {
            return Ok(reg);
        }
        let reg = self.add(RegisterFile::Bits32, name)?;
        self.presets.insert(preset, reg);
        Ok(reg)
    }

    fn constant(&mut self, file: RegisterFile, bits: u64) -> Result<Reg> {
        if file == RegisterFile::Bits32 {
            return self.preset(Preset::Constant(bits & 0xffff_ffff), format!("{bits:#x}"));
        }
        if let Some(&reg) = self.constants64.get(&bits) {
            return Ok(reg);
        }
        let reg = self.add(RegisterFile::Bits64, format!("{bits:#x}"))?;
        self.constants64.insert(bits, reg);
        Ok(reg)
    }

    /// A declared register of a register file.
    pub fn named(&self, name: &str, file: RegisterFile) -> Result<Reg> {
        match self.known.get(name) {
            Some(&(found, reg)) if found == file => Ok(reg),
            Some((found, _)) => error(self.line, format!("{name} is a {found:?} register where {file:?} is needed")),
            None => error(self.line, format!("{name} is not declared")),
        }
    }

    /// A destination register; `_` is `None`.
    pub fn sink(&self, operand: &Operand, file: RegisterFile) -> Result<Option<Reg>> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(None),
            _ => self.target(operand, file).map(Some),
        }
    }

    /// A destination register.
    pub fn target(&self, operand: &Operand, file: RegisterFile) -> Result<Reg> {
        match operand {
            Operand::Name(name) => {
                let reg = self.named(name, file)?;
                if file == RegisterFile::Bits32 {
                    self.targets.borrow_mut().push(reg);
                }
                Ok(reg)
            }
            _ => error(self.line, format!("expected a destination register, found {operand:?}")),
        }
    }

    /// A source operand: register, constant, special register, or address of a shared array or tensor map.
    pub fn source(&mut self, operand: &Operand, file: RegisterFile) -> Result<Reg> {
        match operand {
            Operand::Name(name) => {
                if let Some(&address) = self.shared.get(name) {
                    return self.constant(file, u64::from(address));
                }
                if let (RegisterFile::Bits32, Some(preset)) = (file, special(name)) {
                    return self.preset(preset, name.clone());
                }
                if let (RegisterFile::Bits64, Some(map)) =
                    (file, self.parameters.iter().find(|p| p.is_map && p.name == *name))
                {
                    return self.constant(file, PARAMETERS + u64::from(map.offset));
                }
                self.named(name, file)
            }
            Operand::Integer(n) if file != RegisterFile::Predicate => self.constant(file, *n),
            Operand::F32(bits) if file == RegisterFile::Bits32 => self.constant(file, u64::from(*bits)),
            _ => error(self.line, format!("expected a {file:?} operand, found {operand:?}")),
        }
    }

    pub fn r32(&mut self, operand: &Operand) -> Result<Reg> {
        self.source(operand, RegisterFile::Bits32)
    }

    /// An address operand.
    pub fn address(&mut self, operand: &Operand) -> Result<super::program::Address> {
        use super::program::Address;
        let Operand::Address(base, offset) = operand else {
            return error(self.line, format!("expected an address, found {operand:?}"));
        };
        if let Some(&symbol) = self.shared.get(base) {
            let base = self.constant(RegisterFile::Bits32, u64::from(symbol))?;
            return Ok(Address { base, wide: false, offset: *offset });
        }
        match self.known.get(base) {
            Some(&(RegisterFile::Bits32, base)) => Ok(Address { base, wide: false, offset: *offset }),
            Some(&(RegisterFile::Bits64, base)) => Ok(Address { base, wide: true, offset: *offset }),
            _ => error(self.line, format!("{base} is neither a register nor a shared array")),
        }
    }

    /// Offset and size of the parameter that an address names.
    pub fn parameter_at(&self, operand: &Operand) -> Result<(u32, u32)> {
        if let Operand::Address(name, 0) = operand
            && let Some(parameter) = self.parameters.iter().find(|p| p.name == *name)
        {
            return Ok((parameter.offset, parameter.bytes));
        }
        error(self.line, format!("{operand:?} is not a parameter"))
    }

    pub fn label(&self, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Name(name) if self.labels.contains_key(name) => Ok(self.labels[name]),
            _ => error(self.line, format!("{operand:?} is not a label")),
        }
    }
}

/// Special registers.
fn special(name: &str) -> Option<Preset> {
    let axis = match name.rsplit_once('.').map(|(_, axis)| axis) {
        Some("x") => 0,
        Some("y") => 1,
        Some("z") => 2,
        _ => 3,
    };
    Some(match name.split('.').next()? {
        "%tid" if axis < 3 => Preset::Thread(axis),
        "%ntid" if axis < 3 => Preset::Threads(axis),
        "%ctaid" if axis < 3 => Preset::Block(axis),
        "%nctaid" if axis < 3 => Preset::Blocks(axis),
        "%laneid" => Preset::Lane,
        "%warpid" => Preset::Warp,
        "%lanemask_lt" => Preset::LanesBelow,
        "WARP_SZ" => Preset::Constant(32),
        _ => return None,
    })
}
