//! The one error type of the crate.
//!
//! Variants are divided by who can act on them: the caller of a request, the owner of a checkpoint, the
//! owner of the machine. The command line turns them into exit codes through [`Error::exit_code`].
//! User data never panics; a message names the file, tensor or field and what was expected of it.

use std::fmt;
use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong, with what a person needs to put it right.
#[derive(Debug)]
pub enum Error {
    /// A request that cannot be met as written: a number out of range, a contradiction between settings.
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
    /// A configuration file of a checkpoint is missing a value, or holds one that this engine does not know.
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
    /// A tensor is missing, or has another shape or type than the model asks for.
    Weights {
        /// The file or folder searched.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// What the model asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A model was put together from shapes that do not fit: a configuration that contradicts itself.
    Shape {
        /// Which step of which model.
        at: String,
        /// The rule that was broken, with both shapes.
        reason: String,
    },
    /// Something a checkpoint asks for that this engine does not do.
    Unsupported {
        /// What was asked for, and what would be possible.
        what: String,
    },
    /// A device is absent, refused a kernel, or was lost.
    Device {
        /// The back end and adapter.
        backend: String,
        /// What happened.
        reason: String,
    },
    /// A file changed while it was in use.
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A network gave something that is no number: damaged weights, or a range that the precision cannot hold.
    NotFinite {
        /// Which stage.
        stage: String,
    },
    /// A benchmark found something slower than it was.
    Slower {
        /// What, and by how much.
        what: String,
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

    /// A configuration value that is missing or not understood.
    pub fn config(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Config { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// The exit code of the command line for this error:
    /// 1 run time, 2 usage, 3 checkpoint, 4 device, 5 input/output, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Request { .. } => 2,
            Error::Config { .. }
            | Error::WeightFile { .. }
            | Error::Weights { .. }
            | Error::Shape { .. }
            | Error::Changed { .. }
            | Error::Unsupported { .. } => 3,
            Error::NotFinite { .. } | Error::Slower { .. } => 1,
            Error::Device { .. } => 4,
            Error::Io { .. } => 5,
            Error::Cancelled => 130,
        }
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
            Error::Device { backend, reason } => write!(f, "{backend}: {reason}"),
            Error::Changed { path } => {
                write!(f, "{}: the file changed while it was being read; nothing was written", path.display())
            }
            Error::NotFinite { stage } => {
                write!(f, "{stage}: the result holds values that are no numbers; are the weights damaged?")
            }
            Error::Slower { what } => write!(f, "slower: {what}"),
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
