//! The requests, one file each: from a body to an order or an answer.

pub mod blends;
pub mod classify;
pub mod edits;
pub mod embeddings;
pub mod enlarge;
pub mod generations;
pub mod models;
pub mod operations;
pub mod variations;
