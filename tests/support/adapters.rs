//! Adapters with what a test needs of them.

use super::available::{available, whether};
use std::sync::OnceLock;
use unclip::Dtype;
use unclip::backend::wgpu::{Adapter, Kind, Options, Wgpu};
use unclip::ops::Tiles;

/// The adapter that tests run on, if there is one.
pub fn adapter() -> Option<&'static Adapter> {
    static ADAPTER: OnceLock<Result<Adapter, String>> = OnceLock::new();
    let opened = ADAPTER.get_or_init(|| match Wgpu::new(Options::default()) {
        Ok(backend) => Ok(backend.adapter().clone()),
        Err(error) => Err(error.to_string()),
    });
    available("wgpu", opened.as_ref())
}

/// The back end with these options, if the adapter can do what they ask for.
pub fn open(options: Options) -> Option<Wgpu> {
    let adapter = adapter()?;
    let name = &adapter.name;
    if options.storage == Dtype::F16 {
        available("wgpu-f16", whether(adapter.f16, format!("{name} lacks f16")))?;
    }
    match options.tiles {
        // Without subgroups of eight the back end takes the kernel without lanes.
        Some(Tiles::Lanes) => {
            let lanes = adapter.subgroups && adapter.lanes == Some(8);
            available("wgpu-lanes", whether(lanes, format!("{name} has no subgroups of always eight")))?;
        }
        Some(Tiles::Matrices) => {
            let matrices = adapter.matrices.is_some();
            available("wgpu-matrices", whether(matrices, format!("{name} lacks cooperative matrices")))?;
        }
        Some(Tiles::Registers | Tiles::Shared) | None => {}
    }
    Some(Wgpu::new(options).unwrap_or_else(|error| panic!("{error}")))
}

/// The same for a storage type, with what the back end chooses.
pub fn storing(storage: Dtype) -> Option<Wgpu> {
    open(Options { storage, ..Options::default() })
}

/// What tests may lack of an adapter, with options that ask for it.
pub fn each() -> [(&'static str, Options); 4] {
    let plain = Options::default();
    let tiles = |tiles| Options { tiles: Some(tiles), ..plain };
    [
        ("wgpu", plain),
        ("wgpu-f16", Options { storage: Dtype::F16, ..plain }),
        ("wgpu-lanes", tiles(Tiles::Lanes)),
        ("wgpu-matrices", Options { storage: Dtype::F16, ..tiles(Tiles::Matrices) }),
    ]
}

/// Whether the adapter is a program, for which barriers are slow.
pub fn is_software() -> bool {
    adapter().is_some_and(|adapter| adapter.kind == Kind::Software)
}
