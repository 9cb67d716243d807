//! The socket between exporter and importer. Packets, so that a message and its descriptors stay together.
//!
//! A request is the format's mark and a key. An answer is one or more packets: the mark, a code (0: here they are), the
//! number of pieces in all, and the sizes in bytes of the pieces whose descriptors come with this packet.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, shutdown, socket_with,
    sockopt::{Timeout, set_socket_timeout, socket_peercred},
};

use super::{Key, MAGIC, Token, WAIT, array, random};

/// Pieces in one packet at most: descriptors on their way count against the limit of open files.
pub const PIECES_AT_ONCE: usize = 16;

/// Requests that may wait.
const BACKLOG: i32 = 128;

/// Until a connection that could not be taken is tried again.
const PAUSE: Duration = Duration::from_millis(10);

const REQUEST_BYTES: usize = 24;
const HEAD_BYTES: usize = 16;
const ANSWER_BYTES: usize = HEAD_BYTES + 8 * PIECES_AT_ONCE;

/// A piece of an allocation's memory: its size in bytes, and a descriptor of it.
pub type Piece = (u64, OwnedFd);

/// Where an exporter is asked for memory.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    name: u64,
}

/// A request that was made.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// What it asks for.
    pub key: Key,
}

/// An exporter that was asked.
#[derive(Debug)]
pub struct Source {
    socket: OwnedFd,
    /// Pieces that are still to come; `None` before the first packet.
    left: Option<u32>,
}

/// Why there is no memory from an exporter.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It has ended, or does not answer.
    #[error("the exporting process has ended or does not answer")]
    Gone,
    /// It has said no: `CUDA_ERROR_INVALID_HANDLE` for memory that it has freed, else what its driver said.
    #[error("the exporting process refuses with CUDA error {0}")]
    Refused(u32),
    /// Its answer is none, or there is no socket to ask with.
    #[error("cannot ask the exporting process: {0}")]
    Broken(#[from] io::Error),
}

fn address(name: u64) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(format!("emuv-ipc-{name:016x}").as_bytes())?)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Fails unless the other side is the same user.
fn check_peer(socket: &OwnedFd) -> io::Result<()> {
    if socket_peercred(socket)?.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

fn bound_waits(socket: &OwnedFd) -> io::Result<()> {
    set_socket_timeout(socket, Timeout::Recv, Some(WAIT))?;
    Ok(set_socket_timeout(socket, Timeout::Send, Some(WAIT))?)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl Listener {
    /// Opens a socket under a new name.
    ///
    /// # Errors
    /// The system's own.
    pub fn open() -> io::Result<Self> {
        let (socket, name) = (socket()?, u64::from_le_bytes(random()?));
        bind(&socket, &address(name)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, name })
    }

    /// What tokens call it.
    pub fn name(&self) -> u64 {
        self.name
    }

    /// The next request: waits for one. `None`: who came asked for nothing, or must not.
    ///
    /// # Errors
    /// The system's own: the socket is of no more use, e.g. after [`Self::close`].
    pub fn accept(&self) -> io::Result<Option<Client>> {
        let socket = match retry(|| accept_with(&self.socket, SocketFlags::CLOEXEC)) {
            Ok(socket) => socket,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => return Err(error),
            Err(_) => {
                // Out of descriptors for now, say: who came is still there.
                std::thread::sleep(PAUSE);
                return Ok(None);
            }
        };
        Ok(Self::receive(&socket).ok().map(|key| Client { socket, key }))
    }

    fn receive(socket: &OwnedFd) -> io::Result<Key> {
        check_peer(socket)?;
        bound_waits(socket)?;
        let mut request = [0; REQUEST_BYTES];
        let (_, received) = retry(|| rustix::net::recv(socket, &mut request, RecvFlags::empty()))?;
        decode_request(&request[..received.min(REQUEST_BYTES)]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Nobody is served any more; whoever waits in [`Self::accept`] returns.
    pub fn close(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Client {
    /// Sends the next pieces (at most [`PIECES_AT_ONCE`]) of `total`.
    ///
    /// # Errors
    /// The system's own: the client has gone, or takes nothing.
    pub fn send(&self, total: u32, pieces: &[Piece]) -> io::Result<()> {
        let sizes: Vec<u64> = pieces.iter().map(|(bytes, _)| *bytes).collect();
        let files: Vec<BorrowedFd<'_>> = pieces.iter().map(|(_, file)| file.as_fd()).collect();
        let packet = encode_answer(0, total, &sizes);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIECES_AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        retry(|| sendmsg(&self.socket, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL)).map(|_| ())
    }

    /// Says no, with a code of the driver's.
    pub fn refuse(&self, code: u32) {
        // Who has gone need not be told.
        let _ = rustix::net::send(&self.socket, &encode_answer(code, 0, &[]), SendFlags::NOSIGNAL);
    }
}

impl Source {
    /// Asks for the memory that a token stands for.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn ask(token: &Token) -> Result<Self, SourceError> {
        let socket = socket()?;
        bound_waits(&socket)?;
        retry(|| connect(&socket, &address_or_invalid(token.server)?)).map_err(|_| SourceError::Gone)?;
        check_peer(&socket)?;
        let mut request = [0; REQUEST_BYTES];
        request[..8].copy_from_slice(&MAGIC);
        request[8..].copy_from_slice(&token.key.bytes());
        retry(|| rustix::net::send(&socket, &request, SendFlags::NOSIGNAL)).map_err(|_| SourceError::Gone)?;
        Ok(Self { socket, left: None })
    }

    /// The next pieces, in order; none once all have come.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn next_pieces(&mut self) -> Result<Vec<Piece>, SourceError> {
        if self.left == Some(0) {
            return Ok(Vec::new());
        }
        let mut packet = [0; ANSWER_BYTES];
        let (received, files) = self.receive(&mut packet)?;
        if received == 0 {
            return Err(SourceError::Gone);
        }
        let broken = || SourceError::Broken(io::ErrorKind::InvalidData.into());
        let answer = packet.get(..received).and_then(decode_answer).ok_or_else(broken)?;
        if answer.code != 0 {
            return Err(SourceError::Refused(answer.code));
        }
        let left = self.left.unwrap_or(answer.total);
        let count = u32::try_from(answer.sizes.len()).map_err(|_| broken())?;
        if count == 0 || count > left || files.len() != answer.sizes.len() {
            return Err(broken());
        }
        self.left = Some(left - count);
        Ok(answer.sizes.into_iter().zip(files).collect())
    }

    fn receive(&self, packet: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), SourceError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIECES_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(packet)];
        let received = retry(|| recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))
            .map_err(|_| SourceError::Gone)?;
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                files.extend(some);
            }
        }
        if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        Ok((received.bytes, files))
    }
}

fn address_or_invalid(name: u64) -> rustix::io::Result<SocketAddrUnix> {
    address(name).map_err(|_| rustix::io::Errno::INVAL)
}

/// An answer's packet, without its descriptors.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u32,
    total: u32,
    sizes: Vec<u64>,
}

fn encode_answer(code: u32, total: u32, sizes: &[u64]) -> Vec<u8> {
    let mut packet = MAGIC.to_vec();
    packet.extend(code.to_le_bytes());
    packet.extend(total.to_le_bytes());
    packet.extend(sizes.iter().flat_map(|bytes| bytes.to_le_bytes()));
    packet
}

fn decode_answer(packet: &[u8]) -> Option<Answer> {
    let sizes = packet.get(HEAD_BYTES..)?;
    if array(packet, 0)? != MAGIC || !sizes.len().is_multiple_of(8) {
        return None;
    }
    let sizes = (0..sizes.len()).step_by(8).filter_map(|at| Some(u64::from_le_bytes(array(sizes, at)?))).collect();
    let (code, total) = (u32::from_le_bytes(array(packet, 8)?), u32::from_le_bytes(array(packet, 12)?));
    Some(Answer { code, total, sizes })
}

fn decode_request(packet: &[u8]) -> Option<Key> {
    (packet.len() == REQUEST_BYTES && array(packet, 0)? == MAGIC).then_some(())?;
    array(packet, 8).map(Key::from_bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, thread};

    use proptest::prelude::*;

    use super::*;

    fn token(server: u64) -> Token {
        Token { server, key: Key::new().unwrap(), device: [0; 16], bytes: 1, offset_bytes: 0, process: 0 }
    }

    /// Descriptors that can be told apart: each a file in memory that holds its number.
    fn piece(number: u64) -> Piece {
        let file = rustix::fs::memfd_create("piece", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&file, &number.to_le_bytes(), 0).unwrap();
        (number, file)
    }

    fn held_by((_, file): Piece) -> u64 {
        let mut bytes = [0; 8];
        let mut file = File::from(file);
        io::Seek::rewind(&mut file).unwrap();
        file.read_exact(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn all_pieces_arrive_in_order_whatever_their_number() {
        let listener = Listener::open().unwrap();
        let token = token(listener.name());
        thread::scope(|scope| {
            scope.spawn(|| {
                let client = listener.accept().unwrap().unwrap();
                assert_eq!(client.key, token.key);
                let pieces: Vec<Piece> = (0..40).map(piece).collect();
                pieces.chunks(PIECES_AT_ONCE).for_each(|some| client.send(40, some).unwrap());
            });
            let mut source = Source::ask(&token).unwrap();
            let mut all = Vec::new();
            loop {
                let some = source.next_pieces().unwrap();
                if some.is_empty() {
                    break;
                }
                all.extend(some);
            }
            assert!(all.iter().map(|(bytes, _)| *bytes).eq(0..40));
            assert!(all.into_iter().map(held_by).eq(0..40));
        });
    }

    #[test]
    fn a_refusal_says_why() {
        let listener = Listener::open().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().unwrap().refuse(400));
            let mut source = Source::ask(&token(listener.name())).unwrap();
            assert!(matches!(source.next_pieces(), Err(SourceError::Refused(400))));
        });
    }

    #[test]
    fn an_exporter_that_has_ended_is_known_to_have_at_once() {
        let name = Listener::open().unwrap().name();
        assert!(matches!(Source::ask(&token(name)), Err(SourceError::Gone)));
        let listener = Listener::open().unwrap();
        let mut source = Source::ask(&token(listener.name())).unwrap();
        // It ends before it has answered.
        drop(listener);
        assert!(matches!(source.next_pieces(), Err(SourceError::Gone)));
    }

    #[test]
    fn closing_ends_the_wait_for_requests() {
        let listener = Listener::open().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| while listener.accept().is_ok() {});
            listener.close();
            waiting.join().unwrap();
        });
    }

    #[test]
    fn who_asks_for_nothing_gets_nothing() {
        let listener = Listener::open().unwrap();
        let socket = socket().unwrap();
        connect(&socket, &address(listener.name()).unwrap()).unwrap();
        drop(socket);
        assert!(listener.accept().unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_packet_is_read_or_refused(mut packet in proptest::collection::vec(any::<u8>(), 0..200), marked in any::<bool>()) {
            if marked && packet.len() >= 8 {
                packet[..8].copy_from_slice(&MAGIC);
            }
            if let Some(answer) = decode_answer(&packet) {
                prop_assert_eq!(encode_answer(answer.code, answer.total, &answer.sizes), packet.clone());
            }
            prop_assert!(decode_request(&packet).is_none() || packet.len() == REQUEST_BYTES);
        }
    }
}
