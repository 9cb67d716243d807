//! What stands for an exported allocation in another process: 64 bytes, as many as a `CUipcMemHandle` has.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | format and version |
//! | 8..16 | the exporter's socket |
//! | 16..32 | the allocation's key |
//! | 32..48 | UUID of the device that it lies on |
//! | 48..56 | its size in bytes, as the program asked for it |
//! | 56..60 | where it starts in the memory that is mapped, in bytes (it may share that with other allocations) |
//! | 60..64 | the exporter's process number, for messages |
//!
//! Numbers are little-endian. The same allocation always has the same token: programs compare them.

use std::io;

use super::{MAGIC, array, random};

/// Size of a token.
pub const TOKEN_BYTES: usize = 64;

/// Who has it may have the memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// The system's own, where it has no random numbers.
    pub fn new() -> io::Result<Self> {
        random().map(Self)
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not to be found in logs.
        f.write_str("Key")
    }
}

/// See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The exporter's socket ([`super::Listener::name`]).
    pub server: u64,
    /// The allocation's key.
    pub key: Key,
    /// UUID of its device.
    pub device: [u8; 16],
    /// Its size in bytes.
    pub bytes: u64,
    /// Where it starts in the memory that is mapped, in bytes.
    pub offset_bytes: u32,
    /// The exporter's process number.
    pub process: u32,
}

impl Token {
    /// The token as bytes.
    pub fn encode(&self) -> [u8; TOKEN_BYTES] {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.server.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.key.bytes());
        bytes[32..48].copy_from_slice(&self.device);
        bytes[48..56].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.offset_bytes.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.process.to_le_bytes());
        bytes
    }

    /// Reads a token. `None`: these bytes are something else, a handle of the driver's for one.
    pub fn decode(bytes: &[u8; TOKEN_BYTES]) -> Option<Self> {
        if array(bytes, 0)? != MAGIC {
            return None;
        }
        Some(Self {
            server: u64::from_le_bytes(array(bytes, 8)?),
            key: Key::from_bytes(array(bytes, 16)?),
            device: array(bytes, 32)?,
            bytes: u64::from_le_bytes(array(bytes, 48)?),
            offset_bytes: u32::from_le_bytes(array(bytes, 56)?),
            process: u32::from_le_bytes(array(bytes, 60)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_was_made_of() {
        let token = Token {
            server: 0x1122_3344_5566_7788,
            key: Key::new().unwrap(),
            device: *b"0123456789abcdef",
            bytes: 5 << 40,
            offset_bytes: 0x1f_fe00,
            process: 4_194_303,
        };
        assert_eq!(Token::decode(&token.encode()), Some(token));
    }

    #[test]
    fn a_handle_of_the_drivers_and_another_version_are_no_tokens() {
        assert_eq!(Token::decode(&[0; TOKEN_BYTES]), None);
        let mut newer = [7; TOKEN_BYTES];
        newer[..8].copy_from_slice(b"emuVipc2");
        assert_eq!(Token::decode(&newer), None);
    }

    #[test]
    fn keys_differ_and_are_not_shown() {
        let (a, b) = (Key::new().unwrap(), Key::new().unwrap());
        assert_ne!(a, b);
        assert_eq!(format!("{a:?}"), "Key");
    }
}
