//! Which way a picture is up: the number 1 to 8 that cameras and converters write into EXIF or XMP.

use super::Image;

/// How stored pixels lie, by EXIF's number (tag 0x0112). Anything else than 1 to 8 is upright.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orientation(u8);

impl Orientation {
    pub(super) fn new(number: u32) -> Orientation {
        Orientation(u8::try_from(number).unwrap_or(0))
    }

    /// Whether columns become rows, and whether then the stored picture is read from its right and from its bottom.
    fn steps(self) -> Option<(bool, bool, bool)> {
        match self.0 {
            2 => Some((false, true, false)),
            3 => Some((false, true, true)),
            4 => Some((false, false, true)),
            5 => Some((true, false, false)),
            6 => Some((true, false, true)),
            7 => Some((true, true, true)),
            8 => Some((true, true, false)),
            _ => None,
        }
    }

    /// The picture as it was meant to be seen, as Pillow's `ImageOps.exif_transpose` has it.
    pub(super) fn upright(self, image: Image) -> Image {
        let Some((swaps, from_right, from_bottom)) = self.steps() else { return image };
        let [width, height] = if swaps { [image.height, image.width] } else { [image.width, image.height] };
        let mut pixels = Vec::with_capacity(image.pixels.len());
        for y in 0..height {
            for x in 0..width {
                let [column, row] = if swaps { [y, x] } else { [x, y] };
                let column = if from_right { image.width - 1 - column } else { column };
                let row = if from_bottom { image.height - 1 - row } else { row };
                let at = 3 * (row * image.width + column);
                pixels.extend_from_slice(&image.pixels[at..at + 3]);
            }
        }
        Image { width, height, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turned_picture_keeps_its_pixels() {
        let image =
            Image { width: 3, height: 2, pixels: [0, 1, 2, 3, 4, 5].into_iter().flat_map(|v| [v; 3]).collect() };
        let turned = |number: u32| {
            let image = Orientation::new(number).upright(image.clone());
            (image.width, image.pixels.chunks_exact(3).map(|pixel| pixel[0]).collect::<Vec<_>>())
        };
        assert_eq!(turned(3), (3, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(turned(6), (2, vec![3, 0, 4, 1, 5, 2]));
        assert_eq!(turned(8), (2, vec![2, 5, 1, 4, 0, 3]));
        for number in [0, 1, 9, 262] {
            assert_eq!(turned(number), (3, vec![0, 1, 2, 3, 4, 5]));
        }
    }
}
