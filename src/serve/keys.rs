//! Who may ask, and numbers that nobody guesses.

use axum::http::{HeaderMap, header};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use unclip::{Error, Result};

/// The keys of a file, one a line.
pub struct Keys(Vec<String>);

impl Keys {
    /// # Errors
    /// The file cannot be read, or has no key in it.
    pub fn read(path: &Path) -> Result<Keys> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<String> = lines.map(str::to_owned).collect();
        match keys.is_empty() {
            true => Err(Error::value("--api-key-file", path.display(), "no key in it; expected one on each line")),
            false => Ok(Keys(keys)),
        }
    }

    /// Whether a request carries one of the keys.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.filter(|value| value.len() > 7 && value[..7].eq_ignore_ascii_case(b"Bearer "));
        let Some(given) = given.map(|value| value[7..].trim_ascii()) else { return false };
        // All keys, and all bytes of each, so that the time says nothing about them.
        self.0.iter().fold(false, |admitted, key| admitted | same(key.as_bytes(), given))
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Numbers that cannot be guessed: SipHash of a count, under keys that the operating system drew.
pub struct Random {
    halves: [RandomState; 2],
    next: AtomicU64,
}

impl Random {
    pub fn new() -> Random {
        Random { halves: [RandomState::new(), RandomState::new()], next: AtomicU64::new(0) }
    }

    /// 32 hexadecimal digits.
    pub fn name(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let [high, low] = &self.halves;
        format!("{:016x}{:016x}", high.hash_one(count), low.hash_one(count))
    }

    /// A seed of 32 bits, which people can type again.
    pub fn seed(&self) -> u64 {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        self.halves[0].hash_one(count) & u64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn one_of_the_keys_is_needed_and_nothing_near_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# mine\nsk-one\n\n  sk-two  \n").unwrap();
        let keys = Keys::read(&path).unwrap();
        let admits = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            keys.admit(&headers)
        };
        assert!(admits("Bearer sk-one") && admits("bearer sk-two"));
        for value in ["Bearer sk-on", "Bearer sk-onee", "Bearer", "Basic sk-one", "Bearer # mine", "sk-one", "Bearer "]
        {
            assert!(!admits(value), "{value}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(Keys::read(&path).is_err());
    }

    #[test]
    fn names_do_not_repeat() {
        let random = Random::new();
        let names: std::collections::HashSet<String> = (0..1000).map(|_| random.name()).collect();
        assert!(names.len() == 1000 && names.iter().all(|name| name.len() == 32));
    }
}
