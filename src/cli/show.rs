//! `engine run --show`: pictures in the terminal.
//!
//! How a terminal wants its pictures is read from the environment. It is never asked: one that does not answer would keep
//! the program waiting.

use super::progress::Progress;
use clap::ValueEnum;
use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use unclip::image::{Format, Image, Texts};
use unclip::{Error, Result};

/// How pictures are written to the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// What TERM, TERM_PROGRAM and the like say, blocks where they say nothing
    Auto,
    /// Two pixels a character, in 24-bit colour
    Blocks,
    /// Sixel, in 216 colours
    Sixel,
    /// The kitty graphics protocol
    Kitty,
    /// The protocol of iTerm2 and WezTerm
    Iterm,
}

/// Writes one picture, or several as a sheet.
///
/// # Errors
/// The terminal cannot be written to.
pub fn show(images: &[Image], protocol: Protocol, progress: &Progress) -> Result<()> {
    let protocol = match protocol {
        Protocol::Auto if !std::io::stdout().is_terminal() => {
            progress.note("--show: standard output is no terminal, nothing is shown");
            return Ok(());
        }
        Protocol::Auto => of_terminal(|name| std::env::var(name).ok()),
        protocol => protocol,
    };
    let sheet = Image::grid(images)?;
    let text = match protocol {
        Protocol::Kitty => kitty(&base64(&encoded(&sheet)?), "a=T,f=100,q=2,"),
        Protocol::Iterm => iterm(&encoded(&sheet)?),
        Protocol::Sixel => sixel(&sheet),
        Protocol::Auto | Protocol::Blocks => blocks(&fit(&sheet, terminal_pixels())),
    };
    super::print(&text)
}

/// A picture that is drawn again in its place.
pub struct Live {
    protocol: Protocol,
    is_drawn: bool,
}

impl Protocol {
    /// To draw in one place, where standard output is a terminal that can.
    pub fn live(self) -> Option<Live> {
        let protocol = if self == Protocol::Auto { of_terminal(|name| std::env::var(name).ok()) } else { self };
        let can = matches!(protocol, Protocol::Blocks | Protocol::Kitty) && std::io::stdout().is_terminal();
        can.then_some(Live { protocol, is_drawn: false })
    }
}

impl Live {
    /// Draws a picture below the present line, where the cursor stays: a bar has its place there.
    ///
    /// # Errors
    /// The terminal cannot be written to.
    pub fn draw(&mut self, image: &Image) -> Result<()> {
        self.is_drawn = true;
        print_now(&self.text(image, terminal_pixels())?)
    }

    fn text(&self, image: &Image, room: [usize; 2]) -> Result<String> {
        if self.protocol == Protocol::Kitty {
            // One number for all: each takes the place of the last.
            let picture = kitty(&base64(&encoded(image)?), "a=T,f=100,q=2,i=1,p=1,C=1,");
            return Ok(format!("\r\n{}\x1b[A", picture.trim_end()));
        }
        let text = blocks(&fit(image, room));
        Ok(format!("\r\n{text}\x1b[{}A", text.lines().count() + 1))
    }

    /// Takes the picture away, for text or the finished picture.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            let gone =
                if self.protocol == Protocol::Kitty { "\x1b_Ga=d,d=i,i=1,q=2\x1b\\" } else { "\r\n\x1b[J\x1b[A" };
            // Whoever left the terminal needs nothing cleared.
            _ = print_now(gone);
        }
    }
}

/// Text that does not end with its line is shown, too.
fn print_now(text: &str) -> Result<()> {
    super::print(text)?;
    std::io::stdout().flush().map_err(|e| Error::io("standard output", "write", e))
}

/// The protocol of the terminal that these variables describe.
fn of_terminal(variable: impl Fn(&str) -> Option<String>) -> Protocol {
    let is =
        |name: &str, values: &[&str]| variable(name).is_some_and(|v| values.iter().any(|want| v.starts_with(want)));
    let multiplexed = variable("TMUX").is_some() || is("TERM", &["tmux", "screen"]);
    if multiplexed {
        Protocol::Blocks // they keep other protocols from the terminal behind them
    } else if is("TERM_PROGRAM", &["iTerm", "WezTerm", "mintty"]) {
        Protocol::Iterm
    } else if variable("KITTY_WINDOW_ID").is_some()
        || is("TERM", &["xterm-kitty", "xterm-ghostty"])
        || is("TERM_PROGRAM", &["ghostty"])
    {
        Protocol::Kitty
    } else if is("TERM", &["foot", "mlterm", "contour", "yaft"]) {
        Protocol::Sixel
    } else {
        Protocol::Blocks
    }
}

/// Columns and rows of pixels that blocks have room for.
fn terminal_pixels() -> [usize; 2] {
    let size = terminal_size::terminal_size();
    let [columns, rows] = size.map_or([80, 24], |(width, height)| [usize::from(width.0), usize::from(height.0)]);
    [columns.max(2), 2 * rows.saturating_sub(2).max(1)]
}

/// The picture no larger than `most`, each pixel the mean of those it stands for.
fn fit(image: &Image, most: [usize; 2]) -> Image {
    let larger = f64::max(image.width as f64 / most[0] as f64, image.height as f64 / most[1] as f64);
    if larger <= 1.0 {
        return image.clone();
    }
    let side = |n: usize| ((n as f64 / larger) as usize).max(1);
    let (width, height) = (side(image.width), side(image.height));
    let part = |k: usize, of: usize, from: usize| k * from / of..((k + 1) * from / of).max(k * from / of + 1);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            let (rows, columns) = (part(y, height, image.height), part(x, width, image.width));
            let area = rows.len() * columns.len();
            for colour in 0..3 {
                let row = |y: usize| {
                    columns.clone().map(move |x| usize::from(image.pixels[3 * (y * image.width + x) + colour]))
                };
                pixels.push((rows.clone().flat_map(row).sum::<usize>() / area) as u8);
            }
        }
    }
    Image { width, height, pixels }
}

/// Upper half blocks: the foreground is one row of pixels, the background the next.
fn blocks(image: &Image) -> String {
    let mut text = String::new();
    let colour = |pixel: &[u8]| format!("2;{};{};{}", pixel[0], pixel[1], pixel[2]);
    let rows: Vec<&[u8]> = image.pixels.chunks_exact(3 * image.width).collect();
    for pair in rows.chunks(2) {
        let mut last = String::new();
        for x in (0..3 * image.width).step_by(3) {
            let mut colours = format!("\x1b[38;{}m", colour(&pair[0][x..]));
            if let Some(below) = pair.get(1) {
                colours += &format!("\x1b[48;{}m", colour(&below[x..]));
            }
            if colours != last {
                text += &colours;
                last = colours;
            }
            text.push('▀');
        }
        text += "\x1b[0m\n";
    }
    text
}

/// A PNG without settings, as kitty and iTerm take it.
fn encoded(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = image.encode(&mut bytes, Format::Png, &Texts::default());
    written.map_err(|e| Error::io("standard output", "write", e))?;
    Ok(bytes)
}

/// In parts of 4096 characters, the first with these keys; `q=2` keeps the terminal from answering.
fn kitty(png: &str, keys: &str) -> String {
    let parts: Vec<&[u8]> = png.as_bytes().chunks(4096).collect();
    let mut text = String::new();
    for (k, part) in parts.iter().enumerate() {
        let head = if k == 0 { keys } else { "" };
        let more = u8::from(k + 1 < parts.len());
        let part = std::str::from_utf8(part).expect("base64 is ASCII");
        _ = write!(text, "\x1b_G{head}m={more};{part}\x1b\\");
    }
    text + "\n"
}

fn iterm(png: &[u8]) -> String {
    format!("\x1b]1337;File=inline=1;size={}:{}\x07\n", png.len(), base64(png))
}

/// Levels of red, green and blue in a sixel picture.
const LEVELS: usize = 6;

/// Sixel: six rows of pixels a line, a run of characters for each colour in it.
fn sixel(image: &Image) -> String {
    let (width, height) = (image.width, image.height);
    let colours = dithered(image);
    let mut text = format!("\x1bP0;1;0q\"1;1;{width};{height}");
    for index in 0..LEVELS.pow(3) {
        let percent =
            [index / LEVELS / LEVELS, index / LEVELS % LEVELS, index % LEVELS].map(|level| level * 100 / (LEVELS - 1));
        _ = write!(text, "#{index};2;{};{};{}", percent[0], percent[1], percent[2]);
    }
    for band in colours.chunks(6 * width) {
        for index in 0..LEVELS.pow(3) as u8 {
            if !band.contains(&index) {
                continue;
            }
            let bits = |x: usize| {
                let rows = band[x..].iter().step_by(width).enumerate();
                rows.fold(0u8, |bits, (row, &colour)| bits | u8::from(colour == index) << row)
            };
            _ = write!(text, "#{index}");
            let columns: Vec<u8> = (0..width).map(bits).collect();
            for run in columns.chunk_by(|a, b| a == b) {
                _ = write!(text, "!{}{}", run.len(), char::from(b'?' + run[0]));
            }
            text.push('$');
        }
        text.push('-');
    }
    text + "\x1b\\\n"
}

/// The index of each pixel's colour, the error of each passed on to its neighbours (Floyd and Steinberg 1976).
fn dithered(image: &Image) -> Vec<u8> {
    let (width, height) = (image.width, image.height);
    let mut wanted: Vec<f32> = image.pixels.iter().map(|&byte| f32::from(byte)).collect();
    let mut indices = vec![0; width * height];
    let step = 255.0 / (LEVELS - 1) as f32;
    for y in 0..height {
        for x in 0..width {
            for colour in 0..3 {
                let at = 3 * (y * width + x) + colour;
                let level = (wanted[at] / step).round().clamp(0.0, (LEVELS - 1) as f32);
                indices[y * width + x] = indices[y * width + x] * LEVELS as u8 + level as u8;
                let error = (wanted[at] - level * step) / 16.0;
                let mut pass = |there: bool, at: usize, share: f32| {
                    if there {
                        wanted[at] += error * share;
                    }
                };
                let below = at + 3 * width;
                pass(x + 1 < width, at + 3, 7.0);
                pass(y + 1 < height && x > 0, below.wrapping_sub(3), 3.0);
                pass(y + 1 < height, below, 5.0);
                pass(y + 1 < height && x + 1 < width, below + 3, 1.0);
            }
        }
    }
    indices
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |k: usize| u32::from(group.get(k).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for k in 0..4 {
            let letter = char::from(ALPHABET[(bits >> (18 - 6 * k) & 63) as usize]);
            text.push(if k <= group.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, colour: [u8; 3]) -> Image {
        Image { width, height, pixels: colour.repeat(width * height) }
    }

    #[test]
    fn a_terminal_is_known_by_its_variables() {
        let with = |set: &[(&str, &str)]| {
            of_terminal(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(with(&[]), Protocol::Blocks);
        assert_eq!(with(&[("TERM", "xterm-256color")]), Protocol::Blocks);
        assert_eq!(with(&[("TERM", "xterm-kitty")]), Protocol::Kitty);
        assert_eq!(with(&[("TERM", "xterm-256color"), ("KITTY_WINDOW_ID", "1")]), Protocol::Kitty);
        assert_eq!(with(&[("TERM", "foot-extra")]), Protocol::Sixel);
        assert_eq!(with(&[("TERM_PROGRAM", "iTerm.app"), ("TERM", "xterm-256color")]), Protocol::Iterm);
        assert_eq!(with(&[("KITTY_WINDOW_ID", "1"), ("TERM", "tmux-256color")]), Protocol::Blocks);
    }

    #[test]
    fn blocks_show_two_rows_a_line_and_only_say_what_changes() {
        let mut image = plain(3, 3, [1, 2, 3]);
        image.pixels[9..18].copy_from_slice(&[7, 8, 9].repeat(3));
        assert_eq!(blocks(&image), "\x1b[38;2;1;2;3m\x1b[48;2;7;8;9m▀▀▀\x1b[0m\n\x1b[38;2;1;2;3m▀▀▀\x1b[0m\n");
    }

    #[test]
    fn a_picture_is_made_to_fit_by_means_of_its_pixels() {
        let mut image = plain(8, 4, [0; 3]);
        image.pixels[..24].fill(200);
        let small = fit(&image, [4, 100]);
        assert_eq!((small.width, small.height), (4, 2));
        assert_eq!(small.pixels, [[100; 12], [0; 12]].concat());
        assert_eq!(fit(&image, [8, 4]), image);
        assert_eq!(fit(&plain(1000, 1, [5; 3]), [10, 10]), plain(10, 1, [5; 3]));
        assert_eq!(fit(&plain(7, 5, [9; 3]), [3, 3]), plain(3, 2, [9; 3]));
    }

    #[test]
    fn sixels_have_a_run_for_each_colour_of_each_six_rows() {
        let text = sixel(&plain(10, 7, [255, 0, 51]));
        assert!(text.starts_with("\x1bP0;1;0q\"1;1;10;7#0;2;0;0;0#1;2;0;0;20"), "{text}");
        // Index 5 * 36 + 0 * 6 + 1; six bits set, then one.
        assert!(text.ends_with("#181!10~$-#181!10@$-\x1b\\\n"), "{text}");
    }

    #[test]
    fn dithering_keeps_the_mean() {
        let indices = dithered(&plain(40, 40, [75, 0, 255]));
        let red: usize = indices.iter().map(|&index| usize::from(index) / 36 * 51).sum();
        let mean = red as f32 / indices.len() as f32;
        assert!((mean - 75.0).abs() < 1.0, "{mean}");
        assert!(indices.iter().all(|index| index % 6 == 5 && index / 6 % 6 == 0));
    }

    #[test]
    fn kitty_is_sent_in_parts_and_asks_for_no_answer() {
        let text = kitty(&"A".repeat(5000), "a=T,f=100,q=2,");
        assert!(text.starts_with("\x1b_Ga=T,f=100,q=2,m=1;AAAA"), "{}", &text[..40]);
        assert_eq!(text.matches("\x1b_G").count(), 2);
        assert!(text.contains(&format!("\x1b\\\x1b_Gm=0;{}\x1b\\\n", "A".repeat(904))));
    }

    #[test]
    fn a_live_picture_leaves_the_cursor_above_it_and_keeps_one_number() {
        let text = |protocol, image: &Image| Live { protocol, is_drawn: false }.text(image, [10, 20]).unwrap();
        let drawn = text(Protocol::Blocks, &plain(4, 6, [1, 2, 3]));
        assert!(drawn.starts_with("\r\n\x1b[38;") && drawn.ends_with("\n\x1b[4A"), "{drawn:?}");
        let drawn = text(Protocol::Kitty, &plain(4, 6, [1, 2, 3]));
        assert!(drawn.starts_with("\r\n\x1b_Ga=T,f=100,q=2,i=1,p=1,C=1,m=0;"), "{drawn:?}");
        assert!(drawn.ends_with("\x1b\\\x1b[A"), "{drawn:?}");
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
