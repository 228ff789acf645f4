//! The command line `engine`.
fn main() {}
