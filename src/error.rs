//! The one error type of the crate.
//!
//! Variants are divided by who can act on them: the caller of a request, the owner of a checkpoint, the owner of the
//! machine. User data never panics. A message is one line that names the file, tensor or setting, and what was
//! expected.

use crate::dtype::Precision;
use std::fmt;
use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong, with what is needed to put it right.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A request that cannot be met: a value out of range, settings that contradict each other.
    Request {
        /// Which setting, as the caller spelled it.
        what: String,
        /// Its value, where that is what is wrong.
        found: Option<String>,
        /// What it must be, or why it cannot be used.
        reason: String,
    },
    /// A file could not be read or written.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done: "open", "read", "write", "rename".
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A configuration file of a checkpoint lacks a value, or holds one that this engine does not implement.
    Config {
        /// The file.
        path: PathBuf,
        /// Key and reason.
        reason: String,
    },
    /// A weight file is damaged, or its container breaks the format.
    WeightFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A tensor is missing, or its shape or type is not the one that the model expects.
    Weights {
        /// The file or folder searched.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// What the model expects.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The shapes inside a model do not fit: its configuration contradicts itself.
    Shape {
        /// Which step of which model.
        at: String,
        /// The rule that was broken, with both shapes.
        reason: String,
    },
    /// A checkpoint needs something that this engine does not implement.
    Unsupported {
        /// What is needed, and what would be possible.
        what: String,
    },
    /// A device is absent, refused a kernel, or was lost.
    Device {
        /// The back end and adapter.
        backend: String,
        /// What happened.
        reason: String,
    },
    /// A device lacks the memory.
    OutOfMemory {
        /// The back end and adapter.
        backend: String,
        /// What was to be allocated, and what was free, as far as that is known.
        reason: String,
    },
    /// A file changed while it was in use.
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A network's output contains NaN or infinity: damaged weights, or values beyond the range of the precision.
    NotFinite {
        /// The stage in which it arose.
        stage: String,
        /// In which the stage was computed.
        precision: Precision,
    },
    /// The caller asked to stop.
    Cancelled,
}

impl Error {
    /// Wraps an operating-system error with the path it is about.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// A setting of a request that cannot be used.
    pub fn request(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Request { what: what.into(), found: None, reason: reason.into() }
    }

    /// A value of a setting that is out of range: `prior steps 1: must be 2 to 1000`.
    pub fn value(what: impl Into<String>, found: impl fmt::Display, reason: impl Into<String>) -> Self {
        Error::Request { what: what.into(), found: Some(found.to_string()), reason: reason.into() }
    }

    /// A configuration value that is missing or not implemented.
    pub fn config(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Config { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Request { what, found: None, reason } => write!(f, "{what}: {reason}"),
            Error::Request { what, found: Some(found), reason } => write!(f, "{what} {found}: {reason}"),
            Error::Io { path, action, source } => write!(f, "cannot {action} {}: {source}", path.display()),
            Error::Config { path, reason } | Error::WeightFile { path, reason } => {
                write!(f, "{}: {reason}", path.display())
            }
            Error::Weights { path, tensor, expected, found } => {
                write!(f, "{}: tensor {tensor}: expected {expected}, found {found}", path.display())
            }
            Error::Shape { at, reason } => write!(f, "{at}: {reason}"),
            Error::Unsupported { what } => write!(f, "not supported: {what}"),
            Error::Device { backend, reason } | Error::OutOfMemory { backend, reason } => {
                write!(f, "{backend}: {reason}")
            }
            Error::Changed { path } => {
                write!(f, "{}: the file changed while it was being read; nothing was written", path.display())
            }
            Error::NotFinite { stage, precision } => {
                let cause = match precision {
                    Precision::F32 | Precision::Tf32 => "its weights are damaged",
                    Precision::F16 | Precision::Bf16 => {
                        "half precision may be too narrow for its weights, try f32; else they are damaged"
                    }
                };
                write!(f, "{stage}: output contains NaN or infinity in {precision}: {cause}")
            }
            Error::Cancelled => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
