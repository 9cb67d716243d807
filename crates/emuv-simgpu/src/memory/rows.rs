//! Copies and fills of rows of bytes.

use super::{
    scratch::BLOCK_BYTES,
    view::{Side, Stop, View},
};

/// One end of a copy of rows and slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// Whose address it is.
    pub side: Side,
    /// Where the first row begins.
    pub address: u64,
    /// Bytes from one row to the next.
    pub pitch_bytes: u64,
    /// Bytes from one slice to the next.
    pub slice_bytes: u64,
}

/// A copy of `depth` slices of `height` rows of `width` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Box3 {
    /// Target.
    pub to: Plane,
    /// Source.
    pub from: Plane,
    /// Bytes of a row.
    pub width_bytes: usize,
    /// Rows of a slice.
    pub height: u64,
    /// Slices.
    pub depth: u64,
}

impl Box3 {
    /// A copy of bytes that lie in one row.
    pub fn line((to_side, to): (Side, u64), (from_side, from): (Side, u64), bytes: usize) -> Self {
        let plane = |side, address| Plane { side, address, pitch_bytes: bytes as u64, slice_bytes: bytes as u64 };
        Self { to: plane(to_side, to), from: plane(from_side, from), width_bytes: bytes, height: 1, depth: 1 }
    }

    /// Copies row by row.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn run(&self, view: &mut View<'_>) -> Result<(), Stop> {
        for slice in 0..self.depth {
            for row in 0..self.height {
                let at = |plane: &Plane| {
                    let offset =
                        slice.wrapping_mul(plane.slice_bytes).wrapping_add(row.wrapping_mul(plane.pitch_bytes));
                    (plane.side, plane.address.wrapping_add(offset))
                };
                view.copy(at(&self.to), at(&self.from), self.width_bytes)?;
            }
        }
        Ok(())
    }

    /// Whether an address of the program's own is involved.
    pub fn has_host_side(&self) -> bool {
        self.to.side == Side::Host || self.from.side == Side::Host
    }
}

/// What to fill: `height` rows of `width` elements.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// Where the first row begins.
    pub address: u64,
    /// Bytes from one row to the next.
    pub pitch_bytes: usize,
    /// Elements of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Fill {
    /// Fills with a pattern of 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn run(&self, view: &mut View<'_>, pattern: &[u8]) -> Result<(), Stop> {
        let row_bytes = self.width.checked_mul(pattern.len()).ok_or(Stop::IllegalAddress(self.address))?;
        let block = pattern.repeat(row_bytes.min(BLOCK_BYTES) / pattern.len());
        for row in 0..self.height as u64 {
            let mut at = self.address.wrapping_add(row.wrapping_mul(self.pitch_bytes as u64));
            let mut rest = row_bytes;
            while rest > 0 {
                view.check()?;
                let part = rest.min(block.len());
                view.store(at, &block[..part])?;
                at = at.wrapping_add(part as u64);
                rest -= part;
            }
        }
        Ok(())
    }
}
