//! What this process has opened of other processes' memory. Each opening has an address range of its own, in which the
//! exporter's chunks are mapped side by side; it belongs to a context and goes with it.

use std::collections::BTreeMap;

use emuv_cuda::{CUresult, CuError, CuResult, Gpu, Handle, types::CUdevice};
use emuv_policy::{GRANULE, Owner};
use emuv_state::sharing::{Key, Source, SourceError, Token};

use super::error;
use crate::{
    arena::lock,
    calls,
    device::Device,
    log,
    session::Session,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Larger allocations than any machine has memory for are not believed.
const MOST_BYTES: u64 = 1 << 40;

/// See the module's head. One per process.
#[derive(Debug, Default)]
pub(super) struct Imports {
    /// Something is or was open.
    any: AtomicBool,
    state: Mutex<State>,
    count: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// By the address that the program has.
    open: BTreeMap<u64, Import>,
    /// Closed while a capture forbade to wait for the GPU.
    closed: Vec<Import>,
}

#[derive(Debug)]
struct Import {
    facts: Imported,
    key: Key,
    /// The device that it is mapped for.
    mapped_for: CUdevice,
    references: u64,
    mapping: Mapping,
}

/// What is open at an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Imported {
    /// Where the allocation starts.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The context that opened it.
    pub context: Owner,
    /// The device that it lies on, or if this process does not see that, the one that it is mapped for.
    pub device: CUdevice,
    /// Counts openings, from 1.
    pub number: u64,
}

/// A range with memory of another process in it.
#[derive(Debug, Default)]
struct Mapping {
    base: u64,
    bytes: u64,
    /// In order: each a handle and its size in bytes.
    pieces: Vec<(Handle, u64)>,
    /// How many of them are mapped.
    mapped: usize,
}

impl Mapping {
    /// Fetches the memory that a token stands for and maps it.
    fn make(gpu: &dyn Gpu, token: &Token) -> CuResult<Self> {
        let mut mapping = Self::default();
        let made = mapping.fetch(gpu, token).and_then(|()| mapping.map(gpu));
        if let Err(error) = made {
            mapping.undo(gpu);
            return Err(error);
        }
        Ok(mapping)
    }

    fn fetch(&mut self, gpu: &dyn Gpu, token: &Token) -> CuResult {
        let wrong = || error(CUresult::CUDA_ERROR_INVALID_HANDLE);
        let mut source = Source::ask(token).map_err(|error| code_of(&error, token))?;
        loop {
            let pieces = source.next_pieces().map_err(|error| code_of(&error, token))?;
            if pieces.is_empty() {
                break;
            }
            for (bytes, file) in pieces {
                if bytes == 0 || !bytes.is_multiple_of(GRANULE) || bytes > MOST_BYTES - self.bytes {
                    return Err(wrong());
                }
                self.pieces.push((gpu.import(&file)?, bytes));
                self.bytes += bytes;
            }
        }
        let end = u64::from(token.offset_bytes).checked_add(token.bytes);
        if token.bytes > 0 && end.is_some_and(|end| end <= self.bytes) { Ok(()) } else { Err(wrong()) }
    }

    fn map(&mut self, gpu: &dyn Gpu) -> CuResult {
        self.base = gpu.reserve(self.bytes, 0)?;
        let mut at = self.base;
        for (handle, bytes) in &self.pieces {
            gpu.map(at, *bytes, *handle)?;
            self.mapped += 1;
            at += bytes;
        }
        Ok(())
    }

    /// Takes it apart. The GPU is done with it.
    fn undo(self, gpu: &dyn Gpu) {
        let mut at = self.base;
        let mut result = Ok(());
        for (index, (handle, bytes)) in self.pieces.into_iter().enumerate() {
            if index < self.mapped {
                result = result.and(gpu.unmap(at, bytes));
            }
            at += bytes;
            result = result.and(gpu.release(handle));
        }
        if self.base != 0 {
            result = result.and(gpu.unreserve(self.base, self.bytes));
        }
        if let Err(error) = result {
            // After a fatal error of the context; the process's end gives it back.
            log::debug(format_args!("closing memory of another process: {error}"));
        }
    }
}

/// What the program is told.
fn code_of(why: &SourceError, token: &Token) -> CuError {
    log::debug(format_args!("memory of process {} cannot be opened: {why}", token.process));
    match why {
        SourceError::Gone => error(CUresult::CUDA_ERROR_INVALID_HANDLE),
        SourceError::Refused(code) => error(CUresult(*code)),
        SourceError::Broken(_) => error(CUresult::CUDA_ERROR_MAP_FAILED),
    }
}

impl Imports {
    /// Opens what a token stands for in a context of `device`; it lies on the device `lies_on`.
    ///
    /// # Errors
    /// See [`super::Ipc::open`].
    pub fn open(&self, device: &Device, context: Owner, token: &Token, lies_on: CUdevice) -> CuResult<u64> {
        if let Some(address) = self.open_again(context, token.key) {
            return Ok(address);
        }
        let gpu = device.arena.gpu();
        let mapping = Mapping::make(gpu, token)?;
        // Another thread may have opened it meanwhile.
        if let Some(address) = self.open_again(context, token.key) {
            mapping.undo(gpu);
            return Ok(address);
        }
        let start = mapping.base + u64::from(token.offset_bytes);
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let facts = Imported { start, bytes: token.bytes, context, device: lies_on, number };
        let import = Import { facts, key: token.key, mapped_for: device.ordinal, references: 1, mapping };
        lock(&self.state).open.insert(start, import);
        self.any.store(true, Ordering::Release);
        Ok(start)
    }

    fn open_again(&self, context: Owner, key: Key) -> Option<u64> {
        let mut state = lock(&self.state);
        let import = state.open.values_mut().find(|import| import.key == key && import.facts.context == context)?;
        import.references += 1;
        Some(import.facts.start)
    }

    /// See [`super::Ipc::close`].
    pub fn close(&self, session: &Session, address: u64) -> CuResult<Option<()>> {
        let context = {
            let mut state = lock(&self.state);
            let Some(import) = state.open.get_mut(&address) else { return Ok(None) };
            if import.references > 1 {
                import.references -= 1;
                return Ok(Some(()));
            }
            import.facts.context
        };
        let waits = !session.captures.any();
        if waits {
            calls::synchronize(session.real, context)?;
        }
        let mut state = lock(&self.state);
        let Some(import) = state.open.get_mut(&address) else { return Ok(None) };
        import.references -= 1;
        // Another thread may have opened it again meanwhile.
        if import.references == 0
            && let Some(import) = state.open.remove(&address)
        {
            state.closed.push(import);
        }
        drop(state);
        if waits {
            self.settle(session);
        }
        Ok(Some(()))
    }

    /// Takes apart what was closed, if no capture runs now.
    pub fn settle(&self, session: &Session) {
        if session.captures.any() {
            return;
        }
        for import in std::mem::take(&mut lock(&self.state).closed) {
            let Some(device) = session.device(import.mapped_for) else { continue };
            if calls::synchronize(session.real, import.facts.context).is_ok() {
                import.mapping.undo(device.arena.gpu());
            }
        }
    }

    /// See [`super::Ipc::imported_at`].
    pub fn at(&self, address: u64) -> Option<Imported> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let state = lock(&self.state);
        let (start, import) = state.open.range(..=address).next_back()?;
        (address - start < import.facts.bytes).then_some(import.facts)
    }

    /// See [`super::Ipc::contexts_gone`].
    pub fn contexts_gone(&self, device: &Device, contexts: &[Owner]) {
        let gone = |import: &Import| import.mapped_for == device.ordinal && contexts.contains(&import.facts.context);
        let imports: Vec<Import> = {
            let mut state = lock(&self.state);
            let mut imports: Vec<Import> =
                state.open.extract_if(.., |_, import| gone(import)).map(|(_, i)| i).collect();
            imports.extend(state.closed.extract_if(.., |import| gone(import)));
            imports
        };
        imports.into_iter().for_each(|import| import.mapping.undo(device.arena.gpu()));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::fd::OwnedFd, thread};

    use emuv_cuda::types::CUmemAllocationProp;
    use emuv_policy::Tier;
    use emuv_state::sharing::{Listener, Piece};

    use super::*;

    const BASE: u64 = 1 << 40;

    /// What is reserved, imported and mapped; refuses the mapping at one address.
    #[derive(Default)]
    struct Counting {
        state: Mutex<(u64, BTreeSet<u64>, BTreeSet<u64>)>,
        refused: Option<u64>,
    }

    impl Counting {
        fn is_empty(&self) -> bool {
            let state = lock(&self.state);
            state.0 == 0 && state.1.is_empty() && state.2.is_empty()
        }
    }

    impl Gpu for Counting {
        fn granularity_bytes(&self) -> u64 {
            GRANULE
        }
        fn reserve(&self, bytes: u64, _: u64) -> CuResult<u64> {
            lock(&self.state).0 += bytes;
            Ok(BASE)
        }
        fn unreserve(&self, _: u64, bytes: u64) -> CuResult {
            lock(&self.state).0 -= bytes;
            Ok(())
        }
        fn create(&self, _: Tier, _: u64) -> CuResult<Handle> {
            Err(CuError::NOT_SUPPORTED)
        }
        fn import(&self, _: &OwnedFd) -> CuResult<Handle> {
            let mut state = lock(&self.state);
            let handle = state.1.len() as u64;
            state.1.insert(handle);
            Ok(Handle(handle))
        }
        fn release(&self, handle: Handle) -> CuResult {
            assert!(lock(&self.state).1.remove(&handle.0));
            Ok(())
        }
        fn map(&self, address: u64, _: u64, _: Handle) -> CuResult {
            if self.refused == Some(address) {
                return CUresult::OUT_OF_MEMORY.ok();
            }
            assert!(lock(&self.state).2.insert(address));
            Ok(())
        }
        fn unmap(&self, address: u64, _: u64) -> CuResult {
            assert!(lock(&self.state).2.remove(&address));
            Ok(())
        }
        fn ram_properties(&self) -> CuResult<CUmemAllocationProp> {
            Err(CuError::NOT_SUPPORTED)
        }
    }

    /// Opens an allocation of `bytes` at `offset` from an exporter that sends chunks of these sizes.
    fn make(gpu: &Counting, chunks: &[u64], offset_bytes: u32, bytes: u64) -> CuResult<Mapping> {
        let listener = Listener::open().unwrap();
        let key = Key::new().unwrap();
        let token = Token { server: listener.name(), key, device: [0; 16], bytes, offset_bytes, process: 0 };
        thread::scope(|scope| {
            scope.spawn(|| {
                let client = listener.accept().unwrap().unwrap();
                let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
                let pieces: Vec<Piece> = chunks.iter().map(|bytes| (*bytes, file())).collect();
                // The importer may have seen enough.
                let _ = client.send(u32::try_from(chunks.len()).unwrap(), &pieces);
            });
            Mapping::make(gpu, &token)
        })
    }

    #[test]
    fn chunks_are_mapped_side_by_side_and_taken_apart() {
        let gpu = Counting::default();
        let mapping = make(&gpu, &[4 * GRANULE, GRANULE], 0, 5 * GRANULE - 7).unwrap();
        assert_eq!((mapping.base, mapping.bytes), (BASE, 5 * GRANULE));
        assert_eq!(lock(&gpu.state).2, [BASE, BASE + 4 * GRANULE].into());
        mapping.undo(&gpu);
        assert!(gpu.is_empty());
    }

    #[test]
    fn an_exporter_that_sends_something_else_is_not_believed() {
        for (chunks, offset, bytes) in [
            (&[GRANULE][..], 0, GRANULE + 1),
            (&[GRANULE], 512, GRANULE),
            (&[GRANULE], 0, u64::MAX),
            (&[GRANULE], 0, 0),
            (&[GRANULE, 0], 0, GRANULE),
            (&[GRANULE, 4096], 0, GRANULE),
            (&[GRANULE, u64::MAX - GRANULE + 1], 0, GRANULE),
            (&[1 << 62], 0, GRANULE),
        ] {
            let gpu = Counting::default();
            let error = make(&gpu, chunks, offset, bytes).unwrap_err();
            assert_eq!(error.code(), CUresult::CUDA_ERROR_INVALID_HANDLE, "{chunks:?} {offset} {bytes}");
            assert!(gpu.is_empty(), "{chunks:?} {offset} {bytes}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_leaves_nothing_behind() {
        let gpu = Counting { refused: Some(BASE + GRANULE), ..Counting::default() };
        let error = make(&gpu, &[GRANULE, GRANULE], 0, GRANULE).unwrap_err();
        assert!(error.is_out_of_memory());
        assert!(gpu.is_empty());
    }
}
