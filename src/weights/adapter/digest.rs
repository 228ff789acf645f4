//! SHA-256, which tells whether an adapter is the one that a picture was made with.

use hmac_sha256::Hash;
use std::io::{self, Read};

/// The SHA-256 of the bytes that `read` gives, in hexadecimal digits.
///
/// # Errors
/// What `read` reports.
pub(super) fn sha256(mut read: impl Read) -> io::Result<String> {
    let mut hash = Hash::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match read.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards_examples() {
        let of = |bytes: &[u8]| sha256(bytes).unwrap();
        assert_eq!(of(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(of(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(of(&vec![b'a'; 1_000_000]), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}
