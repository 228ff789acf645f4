//! What can be asked for with `engine serve`.

use crate::cli::devices::{Device, DeviceParser};
use crate::cli::flags::{DeviceArguments, DtypeChoice, OUTPUT, OpeningArguments, WHERE, dtype};
use clap::Args;
use std::path::PathBuf;

pub const EXAMPLES: &str = "\
Examples:
  engine serve
  engine serve -m karlo -m small=built-in --device cuda:0 --device cuda:1
  engine serve --host 0.0.0.0 --api-key-file keys.txt

Clients of OpenAI's images API find it under http://127.0.0.1:8080/v1 (OPENAI_BASE_URL), a browser a page at http://127.0.0.1:8080/, and programs the description of all requests at /openapi.json. SIGTERM and Ctrl-C end it after the requests that were accepted, a second one at once.";

/// Groups of flags in the help.
const LIMITS: &str = "Limits";

#[derive(Debug, Args)]
pub struct ServeArguments {
    /// A checkpoint: a folder, a model of the hub's cache (org/name) or built-in; NAME= before it is what requests call it. May be
    /// given several times; the first is that of requests that name none, or dall-e-2
    #[arg(short, long, value_name = "[NAME=]DIR", env = "ENGINE_MODEL", help_heading = WHERE,
          required = cfg!(not(feature = "default-model")))]
    pub model: Vec<String>,
    #[command(flatten)]
    pub opening: OpeningArguments,
    /// Where to compute; may be given several times, each device then takes requests from the same queue
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = DeviceParser, env = "ENGINE_DEVICE",
          help_heading = WHERE)]
    pub device: Vec<Device>,
    /// What tensors are stored in [default: auto]
    #[arg(long, value_parser = dtype(), env = "ENGINE_DTYPE", help_heading = WHERE)]
    pub dtype: Option<DtypeChoice>,
    /// Threads of the CPU; 0 means all that the process may use
    #[arg(long, value_name = "N", default_value_t = 0, env = "ENGINE_THREADS", help_heading = WHERE)]
    pub threads: usize,
    /// Name or address of the interface to listen at; 0.0.0.0 is all of them
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", env = "ENGINE_HOST", help_heading = WHERE)]
    pub host: String,
    /// Port to listen at; 0 takes one that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080, env = "ENGINE_PORT", help_heading = WHERE)]
    pub port: u16,
    /// Address by which clients reach the server, for the URLs of pictures [default: the host that a request names]
    #[arg(long, value_name = "URL", help_heading = WHERE)]
    pub public_url: Option<String>,
    /// File with a key on each line; requests under /v1 then need one of them (Authorization: Bearer KEY)
    #[arg(long, value_name = "FILE", help_heading = LIMITS)]
    pub api_key_file: Option<PathBuf>,
    /// Requests that may wait; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = LIMITS)]
    pub queue: u32,
    /// Most pictures that are computed together for several requests
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = LIMITS)]
    pub batch: u32,
    /// Most bytes of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024),
          help_heading = LIMITS)]
    pub max_body: u32,
    /// Most pixels of a picture in a request, in millions
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = LIMITS)]
    pub max_megapixels: u32,
    /// Folder of the pictures that are answered as URLs, each for 60 minutes [default: one of its own, removed at the end]
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub files: Option<PathBuf>,
    /// Most bytes of that folder, in MiB; the oldest pictures go first
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = LIMITS)]
    pub max_files: u32,
    /// Seconds to finish accepted requests in after SIGTERM
    #[arg(long, value_name = "S", default_value_t = 30, help_heading = LIMITS)]
    pub grace: u32,
    /// Write prompts to the log, too
    #[arg(long, help_heading = OUTPUT)]
    pub log_prompts: bool,
    /// Report errors only
    #[arg(short, long, help_heading = OUTPUT)]
    pub quiet: bool,
}

impl ServeArguments {
    /// One of the devices.
    pub fn on(&self, device: Device) -> DeviceArguments {
        DeviceArguments { device, dtype: self.dtype, matrices: false, threads: self.threads }
    }
}
