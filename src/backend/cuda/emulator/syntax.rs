//! The PTX parser: text to statements, without name lookup or decoding.
//!
//! It covers the part of PTX that the kernels use: a module with entries, their parameters, registers and shared
//! arrays, labels, and instructions. Statements keep their line for error messages.

/// An error in a PTX text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, counted from 1.
    pub line: u32,
    /// What is wrong.
    pub reason: String,
}

impl std::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

pub(super) type Result<T> = std::result::Result<T, SyntaxError>;

pub(super) fn error<T>(line: u32, reason: impl Into<String>) -> Result<T> {
    Err(SyntaxError { line, reason: reason.into() })
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Name(String),
    /// `!p`
    Not(String),
    Integer(u64),
    /// Bits of an f32.
    F32(u32),
    /// `[base + offset]`
    Address(String, i64),
    /// `[map, {x, y}]`
    Tile(String, Vec<Operand>),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `d|p`
    Pair(String, String),
}

#[derive(Clone, Debug)]
pub(super) struct Instruction {
    /// A predicate, and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode, split at the dots.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub(super) enum Statement {
    Label(String),
    Instruction(Instruction),
}

/// A `.reg`, `.shared` or `.param` declaration.
#[derive(Clone, Debug)]
pub(super) struct Declaration {
    pub line: u32,
    pub kind: String,
    pub name: String,
    /// Length of an array, or number of registers `name0`, `name1`, ...
    pub count: Option<u32>,
    pub align: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    /// The module's `.target`.
    pub target: String,
    pub threads: Option<[u32; 3]>,
    pub parameters: Vec<Declaration>,
    pub registers: Vec<Declaration>,
    pub shared: Vec<Declaration>,
    /// The module's `.extern .shared` arrays.
    pub dynamic: Vec<Declaration>,
    pub body: Vec<(u32, Statement)>,
}

/// A parsed module.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub entries: Vec<Entry>,
}

type Token = (u32, String);

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// Splits a text into words and punctuation. `::` is part of a word (`L2::128B`), a single colon ends a label.
fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut all = Vec::new();
    let (mut line, mut chars) = (1, text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|&c| c != '\n') {
                    chars.next();
                }
            }
            '"' => {
                let inside: String = chars.by_ref().take_while(|&c| c != '"').collect();
                all.push((line, format!("\"{inside}")));
            }
            c if is_word(c) => {
                let mut word = String::from(c);
                while let Some(&next) = chars.peek() {
                    let mut ahead = chars.clone();
                    ahead.next();
                    if is_word(next) {
                        word.push(next);
                    } else if next == ':' && ahead.peek() == Some(&':') {
                        word.push_str("::");
                        chars.next();
                    } else {
                        break;
                    }
                    chars.next();
                }
                all.push((line, word));
            }
            c if "{}[]()<>,;:@!|+-=".contains(c) => all.push((line, c.to_string())),
            c => return error(line, format!("unexpected {c:?}")),
        }
    }
    Ok(all)
}

/// Parses a module.
pub(super) fn parse(text: &str) -> Result<Text> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, line: 1, target: String::new(), dynamic: Vec::new() };
    let mut entries = Vec::new();
    while let Some(word) = parser.try_next() {
        match word.as_str() {
            ".version" | ".target" | ".address_size" => {
                let what = parser.next()?;
                if word == ".target" {
                    parser.target = what;
                }
                while parser.take(",") {
                    parser.next()?;
                }
            }
            ".visible" => {}
            ".extern" => {
                parser.expect(".shared")?;
                let mut declared = parser.declarations()?;
                parser.dynamic.append(&mut declared);
                parser.expect(";")?;
            }
            ".entry" => entries.push(parser.entry()?),
            other => return error(parser.line, format!("expected a module directive, found {other:?}")),
        }
    }
    Ok(Text { entries })
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    line: u32,
    target: String,
    dynamic: Vec<Declaration>,
}

impl Parser {
    fn try_next(&mut self) -> Option<String> {
        let (line, word) = self.tokens.get(self.at)?.clone();
        (self.at, self.line) = (self.at + 1, line);
        Some(word)
    }

    fn next(&mut self) -> Result<String> {
        match self.try_next() {
            Some(word) => Ok(word),
            None => error(self.line, "unexpected end of the text"),
        }
    }

    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", |(_, word)| word)
    }

    /// Consumes the next token if it equals `wanted`.
    fn take(&mut self, wanted: &str) -> bool {
        let is = self.peek() == wanted;
        if is {
            self.try_next();
        }
        is
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let found = self.next()?;
        if found == wanted { Ok(()) } else { error(self.line, format!("expected {wanted:?}, found {found:?}")) }
    }

    fn integer(&mut self) -> Result<u64> {
        let word = self.next()?;
        integer(&word).map_or_else(|| error(self.line, format!("expected an integer, found {word:?}")), Ok)
    }

    fn entry(&mut self) -> Result<Entry> {
        let name = self.next()?;
        let mut entry = Entry {
            name,
            threads: None,
            parameters: Vec::new(),
            registers: Vec::new(),
            shared: Vec::new(),
            target: self.target.clone(),
            dynamic: self.dynamic.clone(),
            body: Vec::new(),
        };
        if self.take("(") {
            while !self.take(")") {
                self.expect(".param")?;
                let mut one = self.declarations()?;
                entry.parameters.append(&mut one);
                self.take(",");
            }
        }
        while !self.take("{") {
            match self.next()?.as_str() {
                ".reqntid" => entry.threads = Some(self.dimensions()?),
                ".maxntid" | ".minnctapersm" | ".maxnreg" => _ = self.dimensions()?,
                other => return error(self.line, format!("unknown entry directive {other:?}")),
            }
        }
        while !self.take("}") {
            self.statement(&mut entry)?;
        }
        Ok(entry)
    }

    fn dimensions(&mut self) -> Result<[u32; 3]> {
        let mut all = [1; 3];
        for (i, side) in all.iter_mut().enumerate() {
            if i == 0 || self.take(",") {
                *side = u32::try_from(self.integer()?).unwrap_or(u32::MAX);
            }
        }
        Ok(all)
    }

    /// Declarations after their state space: `.align 16 .b8 name[64]`, `.f32 a, b, c<4>`.
    fn declarations(&mut self) -> Result<Vec<Declaration>> {
        let mut align = 1;
        let mut kind = self.next()?;
        while kind == ".align" {
            align = u32::try_from(self.integer()?).unwrap_or(u32::MAX);
            kind = self.next()?;
        }
        let mut all = Vec::new();
        loop {
            let name = self.next()?;
            let closing = if self.take("<") {
                Some(">")
            } else if self.take("[") {
                Some("]")
            } else {
                None
            };
            let count = match closing {
                Some(closing) => {
                    // Without a length: dynamic shared memory.
                    let count =
                        if self.peek() == closing { 0 } else { u32::try_from(self.integer()?).unwrap_or(u32::MAX) };
                    self.expect(closing)?;
                    Some(count)
                }
                None => None,
            };
            let kind = kind.trim_start_matches('.').to_owned();
            all.push(Declaration { line: self.line, kind, name, count, align });
            // In a parameter list a comma starts the next declaration.
            if self.peek() != "," || self.is_before_directive() {
                return Ok(all);
            }
            self.expect(",")?;
        }
    }

    /// Whether a directive follows the next token.
    fn is_before_directive(&self) -> bool {
        self.tokens.get(self.at + 1).is_some_and(|(_, word)| word.starts_with('.'))
    }

    fn statement(&mut self, entry: &mut Entry) -> Result<()> {
        let word = self.next()?;
        let line = self.line;
        match word.as_str() {
            ".reg" => entry.registers.append(&mut self.declarations()?),
            ".shared" => entry.shared.append(&mut self.declarations()?),
            ".pragma" => _ = self.next()?,
            "@" => {
                let negated = self.take("!");
                let guard = Some((self.next()?, negated));
                let opcode = self.next()?;
                let instruction = self.instruction(guard, &opcode)?;
                entry.body.push((line, Statement::Instruction(instruction)));
            }
            _ if word.starts_with('.') => return error(line, format!("unknown directive {word}")),
            _ if self.take(":") => {
                entry.body.push((line, Statement::Label(word)));
                return Ok(());
            }
            _ => {
                let instruction = self.instruction(None, &word)?;
                entry.body.push((line, Statement::Instruction(instruction)));
            }
        }
        self.expect(";")
    }

    fn instruction(&mut self, guard: Option<(String, bool)>, opcode: &str) -> Result<Instruction> {
        let mut operands = Vec::new();
        while self.peek() != ";" {
            operands.push(self.operand()?);
            if !self.take(",") {
                break;
            }
        }
        Ok(Instruction { guard, opcode: opcode.split('.').map(str::to_owned).collect(), operands })
    }

    fn operand(&mut self) -> Result<Operand> {
        let word = self.next()?;
        match word.as_str() {
            "!" => Ok(Operand::Not(self.next()?)),
            "-" => Ok(match self.operand()? {
                Operand::Integer(n) => Operand::Integer(n.wrapping_neg()),
                Operand::F32(bits) => Operand::F32(bits ^ 0x8000_0000),
                _ => return error(self.line, "expected a number after '-'"),
            }),
            "{" => {
                let mut parts = Vec::new();
                while !self.take("}") {
                    parts.push(self.operand()?);
                    self.take(",");
                }
                Ok(Operand::Vector(parts))
            }
            "[" => {
                let base = self.next()?;
                if self.take(",") {
                    let Operand::Vector(coordinates) = self.operand()? else {
                        return error(self.line, "expected a vector of tile coordinates");
                    };
                    self.expect("]")?;
                    return Ok(Operand::Tile(base, coordinates));
                }
                let mut offset = 0;
                while !self.take("]") {
                    let sign = self.next()?;
                    let negative = sign == "-" || self.take("-");
                    if sign != "+" && sign != "-" {
                        return error(self.line, "expected an address: a name with offsets");
                    }
                    let by = self.integer()? as i64;
                    offset += if negative { -by } else { by };
                }
                Ok(Operand::Address(base, offset))
            }
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => self.number(&word),
            _ if self.take("|") => Ok(Operand::Pair(word, self.next()?)),
            _ => Ok(Operand::Name(word)),
        }
    }

    fn number(&self, word: &str) -> Result<Operand> {
        if let Some(bits) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
            if let (Ok(bits), 8) = (u32::from_str_radix(bits, 16), bits.len()) {
                return Ok(Operand::F32(bits));
            }
        } else if word.contains('.') {
            if let Ok(x) = word.parse::<f32>() {
                return Ok(Operand::F32(x.to_bits()));
            }
        } else if let Some(n) = integer(word) {
            return Ok(Operand::Integer(n));
        }
        error(self.line, format!("expected a number, found {word:?}"))
    }
}

fn integer(word: &str) -> Option<u64> {
    let word = word.trim_end_matches('U');
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "
.version 7.0
.target sm_80
.address_size 64
// a comment
.visible .entry f(
    .param .u64 x,
    .param .u32 n
)
.reqntid 64, 2
{
    .reg .b32 a, b<2>;
    .shared .align 16 .b8 tile[64];
top:
    @!p bra top;
    st.shared.v2.f32 [tile+8], {a, b0};
    mov.f32 a, -0f3F800000;
    ret;
}";

    #[test]
    fn a_module_parses_to_its_declarations_and_statements() {
        let text = parse(MODULE).unwrap();
        let entry = &text.entries[0];
        assert_eq!((entry.name.as_str(), entry.threads), ("f", Some([64, 2, 1])));
        assert_eq!(entry.parameters.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["u64", "u32"]);
        assert_eq!(entry.registers[1].count, Some(2));
        assert_eq!((entry.shared[0].align, entry.shared[0].count), (16, Some(64)));
        let Statement::Instruction(branch) = &entry.body[1].1 else { panic!() };
        assert_eq!((entry.body[1].0, &branch.guard), (15, &Some(("p".to_owned(), true))));
        let Statement::Instruction(store) = &entry.body[2].1 else { panic!() };
        assert_eq!(store.opcode, ["st", "shared", "v2", "f32"]);
        assert_eq!(store.operands[0], Operand::Address("tile".to_owned(), 8));
        let Statement::Instruction(mov) = &entry.body[3].1 else { panic!() };
        assert_eq!(mov.operands[1], Operand::F32(0xbf80_0000));
    }

    #[test]
    fn errors_name_the_line() {
        let wrong = MODULE.replace("ret;", "ret");
        assert_eq!(parse(&wrong).unwrap_err().line, 19);
        assert!(parse("\n\n.entry f() { .local .b32 x; }").unwrap_err().to_string().contains("line 3"));
    }
}
