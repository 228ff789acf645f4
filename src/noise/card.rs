//! What of a CUDA card shows in torch's random numbers.

use super::parse::{Refused, number};
use std::fmt;
use std::str::FromStr;

/// Most multiprocessors that a name may have, and most threads of each: several times those of any card.
const MOST: u32 = 4096;
/// Threads of torch's blocks.
const BLOCK: u32 = 256;

/// A card as torch's generator sees it: draws of more than `multiprocessors` x `threads` elements depend on the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Card {
    multiprocessors: u32,
    threads: u32,
}

/// Cards by name: multiprocessors, and resident threads of each as their compute capability has them.
const CARDS: [(&str, u32, u32); 47] = [
    // 6.0 and 7.0
    ("p100", 56, 2048),
    ("v100", 80, 2048),
    ("titan-v", 80, 2048),
    // 7.5
    ("t4", 40, 1024),
    ("rtx-2060", 30, 1024),
    ("rtx-2070", 36, 1024),
    ("rtx-2080", 46, 1024),
    ("rtx-2080-ti", 68, 1024),
    ("titan-rtx", 72, 1024),
    // 8.0
    ("a100", 108, 2048),
    ("a30", 56, 2048),
    // 8.6
    ("a10", 72, 1536),
    ("a40", 84, 1536),
    ("rtx-a4000", 48, 1536),
    ("rtx-a5000", 64, 1536),
    ("rtx-a6000", 84, 1536),
    ("rtx-3060", 28, 1536),
    ("rtx-3060-ti", 38, 1536),
    ("rtx-3070", 46, 1536),
    ("rtx-3070-ti", 48, 1536),
    ("rtx-3080", 68, 1536),
    ("rtx-3080-12gb", 70, 1536),
    ("rtx-3080-ti", 80, 1536),
    ("rtx-3090", 82, 1536),
    ("rtx-3090-ti", 84, 1536),
    // 8.9
    ("l4", 58, 1536),
    ("l40", 142, 1536),
    ("l40s", 142, 1536),
    ("rtx-4060", 24, 1536),
    ("rtx-4060-ti", 34, 1536),
    ("rtx-4070", 46, 1536),
    ("rtx-4070-super", 56, 1536),
    ("rtx-4070-ti", 60, 1536),
    ("rtx-4070-ti-super", 66, 1536),
    ("rtx-4080", 76, 1536),
    ("rtx-4080-super", 80, 1536),
    ("rtx-4090", 128, 1536),
    // 9.0
    ("h100", 132, 2048),
    ("h100-pcie", 114, 2048),
    ("h200", 132, 2048),
    // 12.0
    ("rtx-5060", 30, 1536),
    ("rtx-5060-ti", 36, 1536),
    ("rtx-5070", 48, 1536),
    ("rtx-5070-ti", 70, 1536),
    ("rtx-5080", 84, 1536),
    ("rtx-5090", 170, 1536),
    ("rtx-pro-6000", 188, 1536),
];

impl Default for Card {
    /// The H200, which the tests' draws were recorded on.
    fn default() -> Self {
        Card { multiprocessors: 132, threads: 2048 }
    }
}

impl Card {
    /// A card of so many multiprocessors with so many resident threads each.
    ///
    /// # Errors
    /// One line that says what is expected.
    pub fn new(multiprocessors: u32, threads: u32) -> Result<Card, String> {
        if !(1..=MOST).contains(&multiprocessors) {
            return Err(format!("{multiprocessors} multiprocessors; a card has 1 to {MOST}"));
        }
        if !(BLOCK..=MOST).contains(&threads) || !threads.is_multiple_of(BLOCK) {
            return Err(format!(
                "{threads} threads in a multiprocessor; a card has a multiple of {BLOCK}: 1024, 1536 or 2048"
            ));
        }
        Ok(Card { multiprocessors, threads })
    }

    /// The names that [`Card::from_str`] knows, beside `MxT`.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CARDS.iter().map(|(name, ..)| *name)
    }

    /// Threads that make a draw of so many elements: whole blocks, as many as the card holds at once.
    pub fn threads(self, elements: u64) -> u32 {
        let most = u64::from(self.multiprocessors * (self.threads / BLOCK));
        BLOCK * elements.div_ceil(u64::from(BLOCK)).clamp(1, most) as u32
    }
}

impl fmt::Display for Card {
    /// By its sizes, `28x1536`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.multiprocessors, self.threads)
    }
}

impl FromStr for Card {
    type Err = Refused;

    /// `28x1536`, or a name such as `rtx-3060` in any case.
    fn from_str(text: &str) -> Result<Card, Refused> {
        let name = text.to_ascii_lowercase();
        if let Some(&(_, multiprocessors, threads)) = CARDS.iter().find(|(known, ..)| *known == name) {
            return Ok(Card { multiprocessors, threads });
        }
        let sizes = name.split_once('x').and_then(|(m, t)| Some((number(m)?, number(t)?)));
        match sizes {
            Some((multiprocessors, threads)) => Card::new(multiprocessors, threads).map_err(Refused),
            None => Err(Refused(format!(
                "card {text:?}: expected multiprocessors x threads such as 28x1536, or one of {}",
                Card::names().collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_the_threads_that_torch_was_seen_to_use() {
        let most = |name: &str| name.parse::<Card>().unwrap().threads(u64::MAX);
        assert_eq!([most("h200"), most("rtx-3060"), most("20x1024")], [270_336, 43_008, 20_480]);
        assert_eq!(Card::default(), "H200".parse().unwrap());
        let card: Card = "20x1024".parse().unwrap();
        assert_eq!([1, 256, 257, 20_480, 20_481].map(|n| card.threads(n)), [256, 256, 512, 20_480, 20_480]);
    }

    #[test]
    fn every_name_is_known_once_and_is_no_size() {
        let mut names: Vec<&str> = Card::names().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for (name, multiprocessors, threads) in CARDS {
            let card: Card = name.parse().unwrap();
            assert_eq!(Card::new(multiprocessors, threads), Ok(card), "{name}");
            assert_eq!(card.to_string().parse(), Ok(card), "{name}");
        }
    }

    #[test]
    fn what_no_card_has_is_refused_in_one_line() {
        for (text, part) in [
            ("0x0", "0 multiprocessors; a card has 1 to"),
            ("28x0", "0 threads in a multiprocessor"),
            ("28x1500", "1500 threads in a multiprocessor; a card has a multiple of 256"),
            ("28x8192", "8192 threads"),
            ("5000x1024", "5000 multiprocessors"),
            ("28x", "card \"28x\": expected multiprocessors x threads such as 28x1536, or one of p100"),
            ("+28x1024", "expected multiprocessors"),
            ("99999999999x1024", "expected multiprocessors"),
            ("rtx-9999", "rtx-3060"),
            ("", "card \"\""),
        ] {
            let error = text.parse::<Card>().unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
