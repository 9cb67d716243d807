//! How a process gives the memory behind one of its allocations to another: a [`Token`] that the program carries over by
//! its own means, and a socket over which the descriptors follow.
//!
//! ```text
//!   exporter                                                  importer
//!   Listener::open()                                          Token::decode(bytes the program brought)
//!   Token { server, key, .. }.encode() --- by the program ---> Source::ask(&token)
//!   Listener::accept() <------------- request: key ---------- |
//!   Client::send(..)   -- packets: sizes, descriptors ------> Source::next_pieces(), until all are there
//! ```
//!
//! The socket is in the abstract namespace, so that nothing is left behind when the exporter ends, however it ends, and
//! a connection to one that has ended is refused at once. Its name is no secret (`/proc/net/unix` shows it): who may
//! have the memory is decided by the peer's user, which the kernel tells, and by the key, which only the token holds.
//! Every wait is bounded by [`WAIT`].

mod socket;
mod token;

use std::time::Duration;

pub use socket::{Client, Listener, PIECES_AT_ONCE, Piece, Source, SourceError};
pub use token::{Key, TOKEN_BYTES, Token};

/// How long one side waits for the other's next packet. An exporter answers as soon as its driver does; one that is
/// stopped (a debugger, SIGSTOP) does not.
pub const WAIT: Duration = Duration::from_secs(5);

/// What begins every token and packet: format and version.
const MAGIC: [u8; 8] = *b"emuVipc1";

/// Random bytes from the kernel.
///
/// # Errors
/// The system's own.
fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        done += rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// The bytes of `from` that start at `at`.
fn array<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}
