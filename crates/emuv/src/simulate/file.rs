//! Reading a trace from a file, compressed or not.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use emuv_policy::trace::{self, Event};
use flate2::read::MultiGzDecoder;

use crate::cli::Failure;

/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// More than any trace has: what is larger was not recorded.
const MOST_BYTES: u64 = 4 << 30;

/// The events of a trace.
///
/// # Errors
/// The file cannot be read, or is not a trace.
pub(super) fn events(path: &Path) -> Result<Vec<(u64, Event)>, Failure> {
    let named = |why: &str| Failure::wrong(path.display(), why);
    let bytes = bytes(path).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => named("is cut off: its gzip data ends early; record it again"),
        _ => named(&format!("cannot read it: {error}")),
    })?;
    trace::events(&bytes).map_err(|why| named(&why.to_string()))
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?.take(MOST_BYTES);
    let mut bytes = Vec::new();
    file.by_ref().take(GZIP.len() as u64).read_to_end(&mut bytes)?;
    if bytes != GZIP {
        file.read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(GZIP.chain(file)).take(MOST_BYTES).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}
