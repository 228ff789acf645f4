//! Statements to a program: registers get numbers, labels places, constants registers of their own.

use super::opcodes;
use super::program::{Instruction, Kernel, MAP_BYTES, Op, PARAMETERS, Parameter, Preset, Reg};
use super::syntax::{Declaration, Entry, Operand, Result, Statement, error};
use std::cell::RefCell;
use std::collections::HashMap;

/// Where shared memory begins. Not at zero, so that a kernel that forgets to add a symbol's address is caught, and for a
/// kernel that asks for less than this at an odd multiple of the alignment that it does ask for, which is all that a device
/// promises.
const SHARED_BASE: u32 = 1024;

/// Most shared memory of a block: 99 KiB on the smallest devices that run code for sm_80, which have capability 8.6, 8.9
/// or 12.0; 227 KiB on Hopper.
const MOST_SHARED: u32 = 99 << 10;
const MOST_SHARED_HOPPER: u32 = 227 << 10;

/// The file that a register is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    /// Up to 32 bits.
    Small,
    /// 64 bits.
    Wide,
    Predicate,
}

/// Bytes of a type, and the file of its registers.
pub(super) fn size_of(kind: &str) -> Option<(u32, File)> {
    Some(match kind {
        "pred" => (1, File::Predicate),
        "b8" | "u8" | "s8" => (1, File::Small),
        "b16" | "u16" | "s16" | "f16" | "bf16" => (2, File::Small),
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => (4, File::Small),
        "b64" | "u64" | "s64" => (8, File::Wide),
        _ => return None,
    })
}

/// Names and numbers while a kernel is decoded.
pub(super) struct Decoder {
    pub line: u32,
    names: [Vec<String>; 3],
    known: HashMap<String, (File, Reg)>,
    small: HashMap<Preset, Reg>,
    wide: HashMap<u64, Reg>,
    shared: HashMap<String, u32>,
    shared_base: u32,
    shared_bytes: u32,
    parameters: Vec<Parameter>,
    labels: HashMap<String, u32>,
    /// 32-bit registers that the instruction at hand writes.
    targets: RefCell<Vec<Reg>>,
}

impl std::hash::Hash for Preset {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Only constants are many.
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
        small: HashMap::new(),
        wide: HashMap::new(),
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
    let aligned = declared.map(|d| Ok(d.align.max(Decoder::size(d)?.0))).collect::<Result<Vec<u32>>>()?;
    let aligned = aligned.into_iter().max().unwrap_or(SHARED_BASE);
    decoder.shared_base = if aligned < SHARED_BASE { SHARED_BASE + aligned } else { aligned };
    entry.shared.iter().try_for_each(|d| decoder.share(d))?;
    let fixed = decoder.shared_bytes;
    entry.dynamic.iter().try_for_each(|d| decoder.share(d))?;
    let dynamic = (!entry.dynamic.is_empty()).then_some(decoder.shared_bytes);
    let mut place = 0;
    for (line, statement) in &entry.body {
        match statement {
            Statement::Label(name) => {
                if decoder.labels.insert(name.clone(), place).is_some() {
                    return error(*line, format!("the label {name} occurs twice"));
                }
            }
            Statement::Instruction(_) => place += 1,
        }
    }
    let mut code = Vec::new();
    for (line, statement) in &entry.body {
        let Statement::Instruction(instruction) = statement else { continue };
        decoder.line = *line;
        let guard = match &instruction.guard {
            Some((name, negated)) => Some((decoder.named(name, File::Predicate)?, *negated)),
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
        most_shared: if entry.target.starts_with("sm_90") { MOST_SHARED_HOPPER } else { MOST_SHARED },
        shared_base: decoder.shared_base,
        shared_bytes: fixed,
        dynamic,
        asynchronous: code.iter().any(|i| i.op.is_asynchronous()),
        code,
        names: decoder.names,
        presets: decoder.small.into_iter().map(|(preset, reg)| (reg, preset)).collect(),
        presets64: decoder.wide.into_iter().map(|(bits, reg)| (reg, bits)).collect(),
    })
}

impl Decoder {
    fn size(d: &Declaration) -> Result<(u32, File)> {
        size_of(&d.kind).map_or_else(|| error(d.line, format!("unknown type .{}", d.kind)), Ok)
    }

    fn parameter(&mut self, d: &Declaration) -> Result<()> {
        let end = self.parameters.last().map_or(0, |p| p.offset + p.bytes);
        let is_map = d.count == Some(MAP_BYTES) && d.align == 64 && d.kind == "b8";
        if d.count.is_some() && !is_map {
            return error(d.line, format!("the parameter {} is an array and no tensor map", d.name));
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

    fn add(&mut self, file: File, name: String) -> Result<Reg> {
        let names = &mut self.names[file as usize];
        names.push(name);
        Reg::try_from(names.len() - 1).or_else(|_| error(self.line, "more than 65536 registers"))
    }

    fn share(&mut self, d: &Declaration) -> Result<()> {
        let (bytes, _) = Self::size(d)?;
        let from = self.shared_bytes.next_multiple_of(d.align.max(bytes));
        self.shared.insert(d.name.clone(), self.shared_base + from);
        self.shared_bytes = from + bytes * d.count.unwrap_or(1);
        Ok(())
    }

    fn preset(&mut self, preset: Preset, name: String) -> Result<Reg> {
        if let Some(&reg) = self.small.get(&preset) {
            return Ok(reg);
        }
        let reg = self.add(File::Small, name)?;
        self.small.insert(preset, reg);
        Ok(reg)
    }

    fn constant(&mut self, file: File, bits: u64) -> Result<Reg> {
        if file == File::Small {
            return self.preset(Preset::Constant(bits & 0xffff_ffff), format!("{bits:#x}"));
        }
        if let Some(&reg) = self.wide.get(&bits) {
            return Ok(reg);
        }
        let reg = self.add(File::Wide, format!("{bits:#x}"))?;
        self.wide.insert(bits, reg);
        Ok(reg)
    }

    /// A declared register of a file.
    pub fn named(&self, name: &str, file: File) -> Result<Reg> {
        match self.known.get(name) {
            Some(&(found, reg)) if found == file => Ok(reg),
            Some((found, _)) => error(self.line, format!("{name} is a {found:?} register where {file:?} is needed")),
            None => error(self.line, format!("{name} is not declared")),
        }
    }

    /// A register that is written; `_` is none.
    pub fn sink(&self, operand: &Operand, file: File) -> Result<Option<Reg>> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(None),
            _ => self.target(operand, file).map(Some),
        }
    }

    /// A register that is written.
    pub fn target(&self, operand: &Operand, file: File) -> Result<Reg> {
        match operand {
            Operand::Name(name) => {
                let reg = self.named(name, file)?;
                if file == File::Small {
                    self.targets.borrow_mut().push(reg);
                }
                Ok(reg)
            }
            _ => error(self.line, format!("{operand:?} where a register is written")),
        }
    }

    /// A register, constant, special register or address of a shared array.
    pub fn source(&mut self, operand: &Operand, file: File) -> Result<Reg> {
        match operand {
            Operand::Name(name) => {
                if let Some(&address) = self.shared.get(name) {
                    return self.constant(file, u64::from(address));
                }
                if let (File::Small, Some(preset)) = (file, special(name)) {
                    return self.preset(preset, name.clone());
                }
                if let (File::Wide, Some(map)) = (file, self.parameters.iter().find(|p| p.is_map && p.name == *name)) {
                    return self.constant(file, PARAMETERS + u64::from(map.offset));
                }
                self.named(name, file)
            }
            Operand::Integer(n) if file != File::Predicate => self.constant(file, *n),
            Operand::Single(bits) if file == File::Small => self.constant(file, u64::from(*bits)),
            _ => error(self.line, format!("{operand:?} where a {file:?} register is read")),
        }
    }

    pub fn small(&mut self, operand: &Operand) -> Result<Reg> {
        self.source(operand, File::Small)
    }

    /// Where an address leads: base register, whether that is a wide one, and distance.
    pub fn address(&mut self, operand: &Operand) -> Result<super::program::Address> {
        use super::program::Address;
        let Operand::Address(base, offset) = operand else {
            return error(self.line, format!("{operand:?} where an address is needed"));
        };
        if let Some(&symbol) = self.shared.get(base) {
            let base = self.constant(File::Small, u64::from(symbol))?;
            return Ok(Address { base, wide: false, offset: *offset });
        }
        match self.known.get(base) {
            Some(&(File::Small, base)) => Ok(Address { base, wide: false, offset: *offset }),
            Some(&(File::Wide, base)) => Ok(Address { base, wide: true, offset: *offset }),
            _ => error(self.line, format!("{base} is no register or shared array")),
        }
    }

    /// Offset and size of the parameter that an address names.
    pub fn parameter_at(&self, operand: &Operand) -> Result<(u32, u32)> {
        if let Operand::Address(name, 0) = operand
            && let Some(parameter) = self.parameters.iter().find(|p| p.name == *name)
        {
            return Ok((parameter.offset, parameter.bytes));
        }
        error(self.line, format!("{operand:?} is no parameter"))
    }

    pub fn label(&self, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Name(name) if self.labels.contains_key(name) => Ok(self.labels[name]),
            _ => error(self.line, format!("{operand:?} is no label")),
        }
    }
}

/// Registers that the hardware fills.
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
