//! What a picture file says beside its pixels.

use super::exif::Exif;
use super::orientation::Orientation;
use super::xmp;

/// The texts that a picture file carries for a picture to be made again. PNG has a text chunk for each; JPEG and WebP have
/// `parameters` in EXIF's user comment, where web interfaces look for it, and the recipe in XMP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// Settings as [image tools](super::Parameters) show them, of this or any other program.
    pub parameters: Option<String>,
    /// All settings of this program, in JSON.
    pub recipe: Option<String>,
}

/// The blocks of a file that are not pixels.
#[derive(Default)]
pub(super) struct Metadata {
    pub exif: Option<Vec<u8>>,
    pub xmp: Option<Vec<u8>>,
}

impl Metadata {
    /// EXIF's orientation; where it has none, that of XMP.
    pub(super) fn orientation(&self) -> Orientation {
        let of_exif = self.exif.as_deref().and_then(Exif::new).and_then(|exif| exif.orientation());
        let of_xmp = || self.xmp.as_deref().and_then(xmp::orientation);
        Orientation::new(of_exif.or_else(of_xmp).unwrap_or(1))
    }

    /// The settings in EXIF and XMP.
    pub(super) fn texts(&self) -> Texts {
        Texts {
            parameters: self.exif.as_deref().and_then(Exif::new).and_then(|exif| exif.user_comment()),
            recipe: self.xmp.as_deref().and_then(xmp::recipe),
        }
    }
}
